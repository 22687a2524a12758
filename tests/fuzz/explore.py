"""The long search, guided by coverage: ``make fuzz``, or ``python -m tests.fuzz.explore [SECONDS] [TARGET ...]``.

Each judge gets SECONDS (60) in a process of its own. An input on which a judge disagrees, or over which it spends more
than a second, is left in tests/fuzz/found/ and ends that judge's search with exit status 1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.seeds import WORDS, seeds

FOUND = Path(__file__).parent / "found"
CPU_SECONDS = 1.0
LONGEST = 65_536


def _explore(name: str, arguments: list[str]) -> None:
    """In the process of one judge: search until the time is up."""
    import atheris

    with atheris.instrument_imports(include=["shared", "services"]):
        from tests.fuzz.targets import TARGETS

    def judge(data: bytes) -> None:
        started = time.process_time()
        TARGETS[name](data)
        assert time.process_time() - started < CPU_SECONDS, "too long"

    atheris.Setup([name, *arguments], judge)
    atheris.Fuzz()


def _run(name: str, seconds: int) -> bool:
    """Search with one judge; whether it agreed on all that it saw."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / str(number)).write_bytes(seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_escape(word)}"\n' for word in WORDS), encoding="ascii")
        print(f"--- {name}: {seconds} s", flush=True)
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.explore", "--judge", name,
                str(corpus), f"-dict={words}", f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20",
                "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={FOUND}/{name}-",
            ],
            check=False,
        )  # fmt: skip
    return done.returncode == 0


def _escape(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


def main(words: list[str]) -> int:
    """Search with the judges that are named, or all. Returns the exit status."""
    from tests.fuzz.targets import TARGETS

    seconds = int(words.pop(0)) if words and words[0].isdigit() else 60
    unknown = [word for word in words if word not in TARGETS]
    if unknown:
        print(f"{', '.join(unknown)}: no such judge; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    FOUND.mkdir(exist_ok=True)
    failed = [name for name in words or TARGETS if not _run(name, seconds)]
    print(f"{', '.join(failed)}: see {FOUND}" if failed else "every judge agreed on every input")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--judge"]:
        _explore(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
