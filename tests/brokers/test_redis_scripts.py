"""The files of the scripts that run in Redis: each has a header, and is sent with all of its words replaced."""

import re
from pathlib import Path

import pytest

import flowrra_extras.scheduler.redis  # noqa: F401 (it has a script of its own)
from flowrra_extras.redis import scripts

FOLDER = Path(scripts.__file__).with_name("lua")
PARTS = {"common", "admit"}  # of other scripts


def test_each_file_is_a_script_or_a_part_of_one() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == scripts.SCRIPTS.keys() | PARTS


@pytest.mark.parametrize("name", sorted(scripts.SCRIPTS))
def test_a_script_says_what_it_takes_and_returns(name: str) -> None:
    header = (FOLDER / f"{name}.lua").read_text().partition("\n\n")[0]
    assert re.fullmatch(
        r"-- [A-Z].*\.\n(-- .*\n|--\n)*"
        r"--\n-- KEYS: P:\n-- ARGV: again.*\n(--   .*\n)*-- Returns: .*\n(--   .*\n)*"
        r"--\n-- include (common|admit)\.lua",
        header,
    )


@pytest.mark.parametrize("name", sorted(scripts.SCRIPTS))
def test_what_is_sent_has_no_comments_and_no_words_of_the_files(name: str) -> None:
    text = scripts.SCRIPTS[name].text.decode()
    assert text.startswith("local p, again = KEYS[1]")
    assert re.findall(r"^\s*--.*|\bF\.\w+|\w+_FIELDS\b", text, re.MULTILINE) == []


def test_an_unknown_field_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scripts, "_FOLDER", tmp_path)
    (tmp_path / "wrong.lua").write_text("return call('HGET', 'job', F.state)\n")
    with pytest.raises(KeyError, match=r"F\.state"):
        scripts.Script("wrong")
