"""Time of Adam fused with a projection or with exact inner products, beside plain torch, other packages, and floors.

    python benchmarks/projection.py --quick                       # one case, about a minute
    python benchmarks/projection.py --kinds sjlt --no-baselines --no-peers --rounds 15      # against the floors alone
    python benchmarks/projection.py --json times.json --markdown times.md --plot times.svg

All contenders take turns in every round, so that other work on the machine hits all of them; medians are printed, and
ratios are medians of the ratios inside a round. Processor time a thread stands beside wall time: where wall time is
longer, threads waited or other work had the processor.

Other packages are measured where they are installed, and skipped with a line that says what to install where not.
Give them an environment of their own (benchmarks/README.md). On a machine with a CUDA device everything runs there,
timed with events.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dataflex.utils.files import write_json, write_text
from measuring import contenders, peers, report
from measuring.case import Case, make_cases
from measuring.goals import Measured, outcomes
from measuring.machine import describe, facts
from measuring.timing import Contender, measure

QUICK = {"rows": [32], "parameters": [1_000_000], "dim": [4096], "rounds": 3}
FULL = {"rows": [1, 8, 32], "parameters": [1_000_000, 10_000_000], "dim": [4096, 8192], "rounds": 5}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``--quick`` sets what is not given itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", metavar="B", help=f"gradients b, {FULL['rows']}")
    parser.add_argument("--parameters", type=int, nargs="+", metavar="P", help=f"parameters p, {FULL['parameters']}")
    parser.add_argument("--dim", type=int, nargs="+", metavar="K", help=f"features k, {FULL['dim']}")
    parser.add_argument("--rounds", type=int, help=f"counted rounds, {FULL['rounds']}")
    parser.add_argument("--kinds", nargs="+", choices=contenders.KINDS, default=list(contenders.KINDS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of dataflex")
    parser.add_argument("--no-baselines", action="store_true", help="leave plain torch out")
    parser.add_argument("--no-peers", action="store_true", help="leave other packages out")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}")
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--plot", type=Path, help="draw the first case here (.svg, .png, .pdf)")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def lineup(case: Case, options: argparse.Namespace, others: Sequence[peers.Peer]) -> Iterator[Contender]:
    """Everything that is timed on a case."""
    yield from contenders.floors(case)
    yield from contenders.exact(case)
    yield from contenders.ours(case, options.kinds)
    if not options.no_baselines:
        yield from contenders.baselines(case)
    yield from (peer.contender(case) for peer in others)


def run(options: argparse.Namespace, device: torch.device, others: Sequence[peers.Peer]) -> Iterator[Measured]:
    """Measure case after case, and say what came out."""
    for case in make_cases(options.rows, options.parameters, options.dim, device):
        print(f"\nb = {case.rows}, p = {case.parameters:,}, k = {case.dim}: ms a row, wall (processor a thread)")
        entered = list(lineup(case, options, others))
        times = measure(entered, options.rounds, device)
        for one in entered:
            measured = Measured(
                case.rows, case.parameters, case.dim, one.name, one.role, one.share, one.stored, times[one.name]
            )
            print(f"  {one.name:<38} {report.cell(measured)}", flush=True)
            yield measured


def main() -> None:
    """Measure and write what was asked for."""
    options = parse()
    torch.set_num_threads(options.threads)
    # torch says that its CSR tensors are in beta, and bergson's dependencies announce deprecations.
    warnings.filterwarnings("ignore", category=UserWarning)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    others = [] if options.no_peers else list(peers.available(device.type))
    machine = facts(device)
    machine["versions"] |= {peer.package: peer.version() for peer in others}
    print(describe(machine))
    results = list(run(options, device, others))
    against = list(outcomes(results, amx="amx_int8" in machine["vector units"]))
    text = report.markdown(machine, results, against)
    print(f"\n{text}")
    if options.json:
        write_json(options.json, report.document(machine, results, against))
    if options.markdown:
        write_text(options.markdown, text)
    if options.plot:
        report.plot(options.plot, machine, results)


if __name__ == "__main__":
    main()
