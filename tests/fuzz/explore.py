"""Coverage-guided fuzzing with atheris: ``make fuzz``, or ``python -m tests.fuzz.explore [SECONDS] [TARGET ...]``.

Each judge runs for SECONDS (60) in its own process. An input that fails its judge, or takes more than a second of
processor time, is written to tests/fuzz/found/. It ends the search of this judge, and the exit status is 1.
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
    """Fuzz one judge, in this process, until the time limit in the arguments for libFuzzer."""
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
    """Fuzz one judge in a child process. Return whether every input passed."""
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
    """Fuzz the named judges, or all of them. Return the exit status."""
    from tests.fuzz.targets import TARGETS

    seconds = int(words.pop(0)) if words and words[0].isdigit() else 60
    unknown = [word for word in words if word not in TARGETS]
    if unknown:
        print(f"{', '.join(unknown)}: no such judge; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    FOUND.mkdir(exist_ok=True)
    failed = [name for name in words or TARGETS if not _run(name, seconds)]
    print(f"{', '.join(failed)}: see {FOUND}" if failed else "every input passed every judge")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--judge"]:
        _explore(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
