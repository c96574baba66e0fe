"""What a training is told, and the learning rate that follows from it."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trainer import options
from trainer import train as cli
from trainer.config import (
    FIELDS,
    ConfigError,
    TrainConfig,
    load_config,
    peak_learning_rate,
    recipe_names,
    to_yaml,
)
from trainer.devices import Devices, limit_note
from trainer.schedule import rate_factor, restarts_factor, triangle_factor
from trainer.values import CHOICES, parse_value, shown

ROOT = Path(__file__).resolve().parents[2]


def errors_of(recipe: str = "standard", **overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return caught.value.errors


NETWORKS = "network must be one of residual, speed, torchvision:NAME, timm:NAME, module:function"


def test_all_errors_come_at_once() -> None:
    errors = errors_of(
        learning_rat=1, max_epochs=0, batch_size="many", network="deep", widths="8,x", mixup_alpha=0
    )
    assert len(errors) == 6
    for text in (
        "unknown field 'learning_rat' (did you mean learning_rate?)",
        "max_epochs must be at least 1, not 0",
        "batch_size must be a whole number, not 'many'",
        f"{NETWORKS}, not 'deep'",
        "widths must be numbers such as 64,128,256, not '8,x'",
        "mixup needs mixup_alpha above 0; mixup_prob 0 switches it off",
    ):
        assert text in errors


def test_a_wrong_field_draws_no_further_errors_from_what_stands_in_for_it() -> None:
    assert errors_of(network="sped", optimizer="muon") == [f"{NETWORKS}, not 'sped'"]


def test_an_unknown_recipe_is_named_with_a_suggestion() -> None:
    [text] = errors_of("standart")
    assert "unknown recipe 'standart' (did you mean standard?)" in text and "fast" in text


def test_a_recipe_is_not_changed_like_a_field() -> None:
    with pytest.raises(
        ConfigError, match=r"^recipe is no field to change: choose one with --recipe$"
    ):
        load_config("standard", {"recipe": "fast"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("widths", "64, 128 256", (64, 128, 256)),
        ("widths", [8, 9], (8, 9)),
        ("resolutions", "[16, 32]", (16, 32)),
        ("deterministic", "TRUE", True),
        ("amsgrad", "no", False),
        ("max_epochs", "1e2", 100),
        ("learning_rate", "3e-4", 3e-4),
        ("devices", 0, "0"),
        ("compile", True, "true"),
        ("run_dir", "", ""),
    ],
)
def test_values_are_read_by_their_field_s_type(name: str, text: object, value: object) -> None:
    assert getattr(load_config("standard", {name: text}), name) == value


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_loads_and_its_printed_form_gives_the_same(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["--recipe", recipe, "--max_epochs", "7", "--set", "seed=5", "--print_config"])
        == 0
    )
    printed = tmp_path / "mine.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(str(printed)) == load_config(recipe, {"max_epochs": 7, "seed": 5})
    assert yaml.safe_load(printed.read_text()).keys() == FIELDS.keys()


def test_a_file_of_one_s_own_names_itself_and_prints_a_form_that_gives_the_same(
    tmp_path: Path,
) -> None:
    mine, printed = tmp_path / "mine.yaml", tmp_path / "printed.yaml"
    mine.write_text("max_epochs: 9\n")
    config = load_config(str(mine))
    assert config == dataclasses.replace(TrainConfig(), recipe="mine", max_epochs=9)
    printed.write_text(to_yaml(config))
    assert load_config(str(printed)) == config


def test_a_file_may_change_a_recipe(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("recipe: fast\nmax_epochs: 9\n")
    assert load_config(str(mine)) == load_config("fast", {"max_epochs": 9})
    mine.write_text("recipe: fats\nmax_epochs: 9\n")
    assert errors_of(str(mine)) == [
        "mine.yaml changes an unknown recipe 'fats' (did you mean fast?)"
    ]


def test_unknown_options_are_named_together_with_wrong_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        cli.main(
            [
                "--learning-rte",
                "0.1",
                "--max_epochs",
                "0",
                "--set",
                "seed",
                "--repeat",
                "0",
                "stray",
            ]
        )
        == options.EXIT_USAGE
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    assert lines[0] == "error: unknown option '--learning-rte' (did you mean --learning_rate?)"
    assert options.unknown_options(["--nonsense"]) == ["unknown option '--nonsense'"]
    assert errors_of(seed=1e20) == ["seed must be at most 2147483647, not 1e+20"]


HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.dates()
    | st.just("9" * 5000)
    | st.builds(lambda: 10**5000),  # hypothesis itself can't write such a number out
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(FIELDS)), HOSTILE)
def test_parse_value_gives_a_value_of_the_type_or_says_what_it_must_be(
    name: str, value: object
) -> None:
    try:
        result = parse_value(FIELDS[name], value)
    except ValueError as error:
        assert "must be" in str(error)
        return
    assert isinstance(result, tuple if name in ("widths", "resolutions") else FIELDS[name])


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=12), HOSTILE, max_size=4))
def test_load_config_raises_nothing_but_config_errors(overrides: dict[str, object]) -> None:
    try:
        config = load_config("standard", overrides)
    except ConfigError as error:
        assert error.errors and all("\n" not in text and len(text) < 300 for text in error.errors)
        return
    assert all(getattr(config, name) in known for name, known in CHOICES.items())
    for name, kind in FIELDS.items():
        assert isinstance(
            getattr(config, name), tuple if name in ("widths", "resolutions") else kind
        )


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\xfa",
        b"seed: 2001-99-99",
        b"seed: 0x" + b"f" * 9000,
        b"seed: " + b"9" * 5000,
        b"[" * 3000,
        b"- 1",
        b"",
        b"a: &a [*a]",
        b"0x" + b"f" * 9000 + b": 1",
        b'data: "\\ud800"\nseed: -1',
        b"? [1]\n: 2",
        b"a: {",
        b"recipe: [1]\nseed: 1",
    ],
    ids=range(13),
)
def test_a_broken_file_gives_config_errors(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_bytes(text)
    assert all(
        len(line) < 400 and "\n" not in line for line in errors_of(str(tmp_path / "broken.yaml"))
    )


def test_a_value_is_shown_in_short_whatever_it_is() -> None:
    for value in (
        {"a" * 500: ["b" * 500, {"c" * 500: "d" * 500}]},
        ["x" * 99] * 99,
        b"e" * 999,
        10**5000,
    ):
        assert len(shown(value)) <= 101


@given(st.text(max_size=40))
def test_any_name_of_a_recipe_gives_a_config_or_a_config_error(name: str) -> None:
    for recipe in (name, name + ".yaml", "x" * 5000 + ".yaml"):
        try:
            load_config(recipe)
        except ConfigError:
            pass


def test_the_configuration_needs_no_torch() -> None:
    code = (
        "import sys, trainer.config as c; c.to_yaml(c.load_config('fast')); sys.exit(any(m in"
        " sys.modules for m in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# -- the learning rate


def test_the_peak_follows_the_effective_batch() -> None:
    config = TrainConfig()
    assert peak_learning_rate(config, 1) == pytest.approx(0.002)
    assert peak_learning_rate(config, 2) == pytest.approx(0.004)
    assert peak_learning_rate(
        dataclasses.replace(config, accumulate_grad_batches=2), 1
    ) == pytest.approx(0.004)
    assert peak_learning_rate(dataclasses.replace(config, learning_rate_batch=0), 8) == 0.001


def test_the_document_s_schedule_ends_where_the_field_notes_say() -> None:
    """Peak 0.002, T_0 40, 150 epochs: the last epoch ends at 0.000293."""
    config, steps = TrainConfig(), 351
    rates = [0.002 * rate_factor(config, step / steps, 150) for step in range(150 * steps)]
    assert rates[0] == rates[40 * steps] == rates[120 * steps] == 0.002
    assert rates[40 * steps - 1] < 1e-6
    assert rates[-1] == pytest.approx(0.000293, abs=1e-6)
    compressed = dataclasses.replace(config, last_cycle="compressed")
    ends = [0.002 * rate_factor(compressed, step / steps, 150) for step in range(150 * steps)]
    assert ends[: 120 * steps] == rates[: 120 * steps] and ends[120 * steps] == 0.002
    assert ends[-1] < 1e-6


@example(100.0, 1, 1, True)
@given(st.floats(0, 100), st.integers(1, 100), st.integers(1, 60), st.booleans())
def test_restarts_stay_between_zero_and_one(
    share: float, epochs: int, period: int, compressed: bool
) -> None:
    assert 0 <= restarts_factor(share * epochs / 100, epochs, period, compressed) <= 1


def test_the_triangle_rises_and_falls() -> None:
    assert triangle_factor(0.0, 0.0, 0.0) == 1.0
    assert triangle_factor(0.1, 0.2, 0.05) == 0.5
    assert triangle_factor(0.2, 0.2, 0.05) == 1.0
    assert triangle_factor(1.0, 0.2, 0.05) == pytest.approx(0.05)
    assert math.isclose(triangle_factor(0.6, 0.2, 0.0), 0.5)
    assert triangle_factor(1.0, 1.0, 0.5) == 1.0


@pytest.mark.parametrize(
    ("named", "limit", "used", "said"),
    [
        (
            "0,1",
            1,
            Devices("cpu", 1),
            "2 devices are named, 1 used: recipe standard has max_devices 1",
        ),
        ("0,3", 1, Devices("gpu", 1, (0,)), "2 devices are named, 1 used"),
        ("auto", 1, Devices("gpu", 1, (0,)), None),
        ("3", 1, Devices("gpu", 1, (3,)), None),
        ("0,1", 0, Devices("cpu", 2), None),
    ],
)
def test_devices_that_a_recipe_leaves_alone_are_told(
    named: str, limit: int, used: Devices, said: str | None
) -> None:
    note = limit_note(TrainConfig(devices=named, max_devices=limit), used)
    assert note is None if said is None else note is not None and note.startswith(said)
