"""The scripts that run in the server, from the files of the folder `lua`. Its `common.lua` explains the keys.

Each script is atomic. The frequent moves are scripts: push, claim, settle. For all others, the script `read` returns
jobs, the rules in `flowrra` decide, and the script `apply` writes, if nothing that was read has changed: see `changes`.

Limits are different: each script that moves a job of a limit calls `admit`, which does what the rules `admit`,
`admit_due` and `charge` do. Many callers use one limit key at the same time, so what one of them has read of it would
seldom be unchanged when it writes.
"""

import functools
import hashlib
import importlib.resources
import re
from collections.abc import Iterable

from flowrra import ENDINGS_KEPT, ENDINGS_TAKEN, UPKEEP_STEP

VERSION = 7  # of the keys
READ_AT_ONCE = 2000  # jobs
RATE_SLACK = 2e-6  # seconds, as in the rules
BUCKET = 256  # seqs, so that a byte names one of them
BUCKETS_AT_ONCE = 100  # in one step
PURGE_LOOKS = 10  # jobs that may be read for each one that is deleted

# Each field of a job's hash as it is stored: the names would take a fifth of its memory. Scripts write `F.status`.
FIELDS = {
    "attempt": "a", "cancel": "c", "children": "k", "claim": "n", "crashes": "C", "due": "d", "error": "e",
    "expires": "x", "failures": "F", "finished": "f", "head": "h", "limit": "l", "parents": "P", "payload": "y",
    "place": "p", "progress": "o", "purge_at": "g", "queue": "q", "result": "r", "rev": "v", "started": "S",
    "status": "s", "submitted": "b", "traceback": "t", "turn": "T", "unique": "u", "waits": "W", "worker": "w",
}  # fmt: skip
RESULT_FIELDS = (
    "head", "status", "result", "error", "traceback", "attempt", "submitted", "started", "finished", "progress",
)  # fmt: skip
CLAIMED_FIELDS = ("attempt", "head", "payload", "submitted", "due", "failures", "crashes", "parents", "limit")
READ_FIELDS = (
    "place", "status", "attempt", "rev", "queue", "head", "submitted", "due", "expires", "unique", "parents",
    "failures", "crashes", "worker", "started", "finished", "purge_at", "error", "traceback", "cancel", "waits",
    "children", "limit", "turn",
)  # fmt: skip


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


# The words of the scripts that stand for something else.
_WORDS = {
    **{f"F.{name}": f"'{short}'" for name, short in FIELDS.items()},
    "CLAIMED_FIELDS": _quoted(FIELDS[name] for name in CLAIMED_FIELDS),
    "CLAIMED_NUMBER": len(CLAIMED_FIELDS),
    "READ_FIELDS": _quoted(FIELDS[name] for name in READ_FIELDS),
    "RESULT_FIELDS": _quoted(FIELDS[name] for name in RESULT_FIELDS),
    "VERSION": VERSION,
    "READ_AT_ONCE": READ_AT_ONCE,
    "MOST_LOOKS": 500,  # entries of queues and priorities in one step
    "UPKEEP": UPKEEP_STEP,
    "ENDINGS_KEPT": ENDINGS_KEPT,
    "ENDINGS_TAKEN": ENDINGS_TAKEN,
    "RATE_SLACK": RATE_SLACK,
    "BUCKET": BUCKET,
    "BUCKETS_READ": 10,  # by one command
    "BUCKETS_AT_ONCE": BUCKETS_AT_ONCE,
    "FEW_IDS": 16,  # of a bucket that are read one by one
    "PURGE_SPAN": 60,  # seconds
    "PURGE_SIZE": 500,  # bytes
    "PURGE_LOOKS": PURGE_LOOKS,
}
_WORD = re.compile(r"\bF\.\w+|\b[A-Z][A-Z_]+\b")
_INCLUDE = re.compile(r"^-- include (\w+)\.lua\n", re.MULTILINE)
_COMMENT = re.compile(r"^ *(--.*)?\n", re.MULTILINE)  # the server keeps the texts in its memory
_FOLDER = importlib.resources.files("flowrra_extras.redis") / "lua"


def _word(found: re.Match[str]) -> str:
    """Return what a word stands for. An unknown field is a KeyError."""
    word = found[0]
    return str(_WORDS[word] if word.startswith("F.") else _WORDS.get(word, word))


@functools.cache
def _text_of(name: str) -> str:
    """Return the text of a file, after those of the files that it includes."""
    text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return "".join(map(_text_of, _INCLUDE.findall(text))) + _WORD.sub(_word, _COMMENT.sub("", text))


class Script:
    """The script of a file, as it is sent, and the hash by which the server knows it.

    `words`: further words of the file, and the lists of names that they stand for.
    """

    def __init__(self, name: str, **words: Iterable[str]) -> None:
        text = _text_of(name)
        for word, names in words.items():
            text = text.replace(word, _quoted(names))
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text).hexdigest().encode()  # noqa: S324 (Redis's name for it, no secret)


SCRIPTS = {
    name: Script(name)
    for name in (
        "activity", "ahead", "apply", "before", "claim", "find", "get", "heartbeat", "keep_steps", "limit",
        "limit_keys", "limit_states", "look", "purge", "push", "read", "remove", "set_queue", "settle", "totals",
        "upgrade",
    )
}  # fmt: skip
