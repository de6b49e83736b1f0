"""The shipped configurations of `accelerate launch`: Accelerate reads them as they are meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from firstcli.recipe.starters import LAUNCHERS, starters

FOLDER = Path(__file__).parents[2] / "recipes" / LAUNCHERS


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the arguments that `accelerate launch` would launch with, on a machine with GPUs."""
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "firstcli", "distill", "r.yaml"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return args


def test_what_ships() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"ddp", "fsdp2", "zero3"}


def test_they_are_no_starters() -> None:
    assert not [each.name for each in starters() if LAUNCHERS in each.name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("zero3", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_loads_each(name: str, kind: DistributedType) -> None:
    config: Any = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert (config.num_processes, config.num_machines) == (8, 1)


def test_the_launcher_takes_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    ddp, fsdp = launched("ddp", monkeypatch), launched("fsdp2", monkeypatch)
    zero = launched("zero3", monkeypatch)
    assert ddp.multi_gpu and not ddp.use_fsdp and ddp.mixed_precision == "no"
    assert fsdp.use_fsdp and int(fsdp.fsdp_version) == 2 and fsdp.mixed_precision == "no"
    assert str(fsdp.fsdp_reshard_after_forward).lower() == "true"
    assert fsdp.fsdp_state_dict_type == "FULL_STATE_DICT"
    assert zero.use_deepspeed and zero.zero_stage == 3 and zero.mixed_precision == "bf16"
    assert zero.zero3_save_16bit_model
    assert {args.num_processes for args in (ddp, fsdp, zero)} == {8}
    assert all(args.module and args.training_script == "firstcli" for args in (ddp, fsdp, zero))
