"""An invented table of support tickets: 12 labels, some of them wrong.

    python benchmarks/tickets.py > tickets.csv

The same arguments give the same bytes. The customer, the product, the problem and the tone are
drawn independently of each other, problems have several wordings, labels share many words, and a
quarter of the tickets mention a different problem that is solved, so that no keyword gives a label
away. A wrong label is one of the other eleven.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import sys
from collections.abc import Iterator

PROBLEMS: dict[str, tuple[str, ...]] = {
    "billing": (
        "I was charged twice for {product} in {month}",
        "my invoice for {month} shows {money}, but we agreed on {less}",
        "the last statement lists {product} although I never ordered it",
        "the amount that you took from my card in {month} is wrong",
        "there is VAT on my {month} invoice, but our company is exempt",
        "two payments of {money} left my account on the same day",
    ),
    "refund": (
        "I sent {item} back {days} ago and still wait for my money",
        "please return the {money} that I paid for {item}",
        "you promised to pay me back {days} ago, but nothing has arrived",
        "how long does it take until I get my {money} back",
        "only half of the {money} for {item} came back to my card",
        "I want my money back, because {item} is not what you described",
    ),
    "shipping": (
        "{item} should have arrived {days} ago",
        "the courier says that my parcel was delivered, but nobody was here",
        "tracking for {item} has not moved for {days}",
        "my parcel with {item} went to my old street",
        "can {item} reach {city} before {weekday}",
        "the box was open when the driver handed it over in {city}",
    ),
    "returns": (
        "how do I send {item} back",
        "where is the label for sending {item} back to you",
        "{item} is too small, I would like a different size",
        "may I hand in {item} at your shop in {city} instead of posting it",
        "{days} have passed since the delivery, can I still send {item} back",
        "the post office in {city} did not accept my parcel to your warehouse",
    ),
    "login": (
        "I cannot get into my account since {weekday}",
        "the page says that my password is wrong, but I have just set it",
        "the code for the second step never reaches my phone",
        "after {days} of trying I am locked out",
        "the link in your e-mail for a new password has expired",
        "my account wants a fingerprint, but my phone has no reader",
    ),
    "account": (
        "please change the address of my account to {city}",
        "I got married and need a different name in my profile",
        "how can I merge my two accounts",
        "please delete my account and all data about me",
        "my account shows the orders of a different person in {city}",
        "I would like letters to reach a new e-mail address from {month} on",
    ),
    "bug": (
        "{app} crashes whenever I open the settings",
        "since the update on {weekday} {app} shows an empty screen",
        "the export of {app} ends with error {number}",
        "the dates in {app} are one day early after {month}",
        "{app} forgets what I typed as soon as I switch windows",
        "pressing save in {app} twice creates two copies",
    ),
    "performance": (
        "{app} takes minutes to open since {weekday}",
        "every search in {app} needs {number} seconds",
        "the fan of my laptop roars as soon as {app} runs",
        "with more than {number} entries {app} hardly reacts",
        "{app} was quick until {month}, now I can drink a coffee meanwhile",
        "scrolling in {app} stutters on my new phone",
    ),
    "feature": (
        "it would help us if {app} could export to a spreadsheet",
        "will {app} ever have a dark mode",
        "please add a calendar to {app}",
        "our team in {city} misses shared folders in {app}",
        "could {app} remind me on {weekday}",
        "is a version of {app} for tablets planned for {month}",
    ),
    "cancel": (
        "I want to end my subscription at the end of {month}",
        "where can I stop {app} from renewing",
        "please confirm that my contract for {app} ends in {month}",
        "we no longer need {app}, what is the period of notice",
        "I tried to leave {days} ago, but the button does nothing",
        "do not renew {app} next year",
    ),
    "upgrade": (
        "we would like the larger plan of {app} from {month} on",
        "what does {app} cost for {number} people",
        "can I move to the yearly plan without losing what I paid",
        "is there a discount if we order {app} for our office in {city}",
        "how much storage does the next plan of {app} have",
        "please add {number} seats to our contract",
    ),
    "praise": (
        "your colleague on the phone was wonderful, {product} works again",
        "I have used {product} for {days} and love it",
        "thank you for the quick answer on {weekday}",
        "best support that I have had in {city}",
        "{product} saved our {month}, well done",
        "the new design of {product} is beautiful",
    ),
}
WORDS: dict[str, tuple[str, ...]] = {
    "app": (
        *("the Lumen app", "Notefield", "Taskgarden Pro", "Ledgerly", "Parcelbox"),
        *("our team plan", "Photovault", "the Tidepool browser", "Meterly", "the Quill editor"),
    ),
    "item": (
        *("my Harbor 3", "the Orbit kettle", "the grey headphones", "your desk lamp"),
        *("the Finch camera", "the running shoes", "the Maple router", "the blue jacket"),
    ),
    "month": ("January", "March", "April", "June", "August", "October", "December"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday"),
    "city": ("Leeds", "Porto", "Gdansk", "Austin", "Osaka", "Lyon", "Bergen", "Quito"),
    "money": ("49.90 euros", "120 dollars", "19.99", "£75", "340 euros", "8.50"),
    "less": ("39.90", "half of it", "100 dollars", "a flat rate", "nothing"),
    "days": ("three days", "two weeks", "ten days", "a month", "six weeks", "48 hours"),
    "number": ("12", "25", "40", "404", "500", "1,200"),
}
WORDS["product"] = (*WORDS["app"], *WORDS["item"])
OPENINGS = (
    *("", "", "", "Hello, ", "Hi team, ", "Good morning, ", "Dear support, ", "Second attempt: "),
    *(
        "I hope you can help: ",
        "Quick question, ",
        "Sorry to bother you, ",
        "To whom it may concern, ",
    ),
)
ENDINGS = (
    *("", "", "", " Thanks!", " Please help.", " I have been a customer for years."),
    *(" My order number is {order}.", " Please call me on {weekday}.", " This is urgent!"),
    *(" Kind regards from {city}.", " I pay a lot for {product}.", " Sent from my phone."),
)


SOLVED = (
    'I wrote to you before: "{other}". That is solved.',
    'Last week I asked this: "{other}". You helped me well.',
    'My ticket of {month} said "{other}". You can close it.',
    'A colleague told you: "{other}". This is a different matter.',
)
"""What a ticket says first about a different problem."""
QUESTIONS = ("how", "where", "what", "can", "may", "will", "could", "is")


def tickets(rows: int, wrong: float, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield id, text and label of each ticket; labels occur equally often before some are wrong.

    Args:
        rows: number of tickets.
        wrong: share of the tickets whose label is wrong, in exactly this proportion.
        seed: determines everything that is drawn; the texts do not depend on `wrong`.
    """
    draw, err = random.Random(seed), random.Random(f"wrong labels, {seed}")
    labels = list(PROBLEMS)
    truth = [labels[number % len(labels)] for number in range(rows)]
    draw.shuffle(truth)
    mistaken = set(err.sample(range(rows), round(wrong * rows)))
    for number, label in enumerate(truth):
        text = _text(draw, label)
        if number in mistaken:
            label = err.choice([other for other in labels if other != label])
        yield f"T{number + 1:05}", text, label


def _text(draw: random.Random, label: str) -> str:
    """Write one ticket, with a typing error now and then."""
    problem = _filled(draw, draw.choice(PROBLEMS[label]))
    problem += "?" if problem.startswith(QUESTIONS) else draw.choice("...!")
    opening, ending = draw.choice(OPENINGS), _filled(draw, draw.choice(ENDINGS))
    if draw.random() < 0.25:
        opening = f"{_solved(draw, label)} "
    if opening.endswith((". ", ": ")) or not opening:
        problem = problem[0].upper() + problem[1:]
    text = f"{opening}{problem}{ending}"
    if draw.random() < 0.15:  # two letters change places
        place = draw.randrange(1, len(text) - 2)
        text = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text.lower() if draw.random() < 0.1 else text


def _solved(draw: random.Random, label: str) -> str:
    """Write a sentence about a problem with a different label."""
    other = draw.choice([other for other in PROBLEMS if other != label])
    return _filled(draw, draw.choice(SOLVED).replace("{other}", draw.choice(PROBLEMS[other])))


def _filled(draw: random.Random, template: str) -> str:
    def word(match: re.Match[str]) -> str:
        if match[1] == "order":
            return f"{draw.randrange(10**5, 10**6)}"
        return draw.choice(WORDS[match[1]])

    return re.sub(r"\{(\w+)\}", word, template)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--wrong", type=float, default=0.12, help="share of wrong labels")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("id", "text", "label"))
    writer.writerows(tickets(options.rows, options.wrong, options.seed))


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what remains is dropped
