"""sdcli beside its peers on a CPU, with the same random weights of full size, turn by turn; writes
docs/benchmarks/cpu.md.

    python -m scripts.record_peers [--only NAME …] [--family sd15|sdxl] [--size WxH] [--mode NAME …]
                                   [--steps 20] [--turns 3] [--weights FOLDER] [--output FILE] [--from FILE]

A turn is one fresh process of every peer. A peer that is not installed is left out, and the page says so; --list names
them. What is finished is kept in a JSON beside the page, and `--from` that file goes on with it (`--turns 0` only
writes the page anew). --tiny uses models of a few channels at 64×64 and shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.measure_memory import weights
from scripts.peers import inputs, turns
from scripts.peers.page import GOALS, page, seen, title, verdict
from scripts.peers.peer import MODES, Job, Peer
from scripts.peers.turns import PEERS, Record
from sdcli.machine import processor

ROOT = Path(__file__).resolve().parents[1]
CASES = (("sd15", 512), ("sd15", 768), ("sdxl", 1024))


def jobs(asked: argparse.Namespace, folder: Path) -> list[Job]:
    families = [family for family in ("sd15", "sdxl") if asked.family in (None, family)]
    sizes = [(family, f"{side}x{side}") for family, side in CASES if family in families]
    if asked.size or asked.tiny:
        sizes = [(family, asked.size or "64x64") for family in families]
    return [
        Job(
            family=family, width=int(size.split("x")[0]), height=int(size.split("x")[1]), steps=asked.steps,
            threads=processor.read().threads, model=str(folder / f"{'tiny' if asked.tiny else 'full'}-{family}"),
            made=str(folder), mode=mode,
        )
        for family, size in sizes
        for mode in asked.mode or MODES[:1]
    ]  # fmt: skip


def chosen(names: Sequence[str] | None, tiny: bool) -> tuple[list[Peer], dict[str, str]]:
    """Those that play, and why others do not."""
    missing = {peer.name: why for peer in PEERS if (why := why_not(peer, names, tiny))}
    return [peer for peer in PEERS if peer.name not in missing], missing


def why_not(peer: Peer, names: Sequence[str] | None, tiny: bool) -> str | None:
    if names and peer.name not in names:
        return "not asked for"
    if peer.only_if_named and not names:
        return "it runs only where it is named"
    return "it knows no tiny models" if tiny and not peer.any_width else peer.missing()


def judge(record: Record) -> bool:
    """Prints every goal; whether none is missed and nobody failed."""
    reached = True
    for name, case in record["cases"].items():
        for goal in GOALS if len(name.split(" ")) == 2 else ():  # modes have none
            found = seen(record, case, goal)
            reached &= found is None or found.value >= goal.least
            print(f"{title(name)}: {goal.text}: {verdict(record, case, goal)}")
        reached &= not case["failed"]
    return reached


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[peer.name for peer in PEERS], help="a peer; repeatable")
    parser.add_argument("--family", choices=("sd15", "sdxl"))
    parser.add_argument("--size", help="as 512x512; a multiple of 64")
    parser.add_argument("--mode", action="append", choices=MODES, help="text unless given; repeatable")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="where models and what is made of them are, or will be (40 GB)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "cpu.md")
    parser.add_argument("--from", dest="earlier", type=Path, help="a record to go on with")
    parser.add_argument("--list", action="store_true", help="the peers' names")
    parser.add_argument("--tiny", action="store_true", help="models of a few channels, at 64×64")
    asked = parser.parse_args(arguments)
    if asked.list:
        missing = chosen([peer.name for peer in PEERS], False)[1]
        print("\n".join(f"{peer.name}: {missing.get(peer.name, 'installed')}" for peer in PEERS))
        return 0
    record = turns.read(asked.earlier) if asked.earlier else turns.begin(asked.steps, asked.tiny)
    kept = asked.output.with_suffix(".json")
    with tempfile.TemporaryDirectory(prefix="sdcli-peers-", ignore_cleanup_errors=True) as scratch:
        try:
            run(record, asked, (asked.weights or Path(scratch)).resolve(), kept)
        except KeyboardInterrupt:
            print(f"interrupted; --from {kept} goes on", file=sys.stderr)
            return 130
    asked.output.write_text(page(record), encoding="utf-8")
    print(asked.output)
    return 0 if judge(record) else 1


def run(record: Record, asked: argparse.Namespace, folder: Path, kept: Path) -> None:
    if not asked.turns:
        return
    peers, missing = chosen(asked.only, asked.tiny)
    folder.mkdir(parents=True, exist_ok=True)
    turns.same_work(record, asked.steps, asked.tiny)
    with turns.session(record):
        record["missing"] = missing
        for job in jobs(asked, folder):
            weights(folder, job.family, asked.tiny)
            inputs.write(job, asked.tiny)
            turns.go(record, job, [peer for peer in peers if job.mode in peer.modes], asked.turns, kept)
    turns.write(record, kept)


if __name__ == "__main__":
    sys.exit(main())
