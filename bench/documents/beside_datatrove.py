"""The same documents through datatrove and through `homegrown data prepare`: reading JSONL, Gopher's rules
of quality and of repetition, MinHash (16 bands of 8 rows over 5 words). Speeds, and what only one keeps.

    python3 -m venv venv && venv/bin/pip install 'datatrove[processing,io]' spacy
    cargo build --release
    venv/bin/python bench/documents/beside_datatrove.py TEXTS.jsonl WORKDIR [--megabytes N] [--repetition]
"""

import argparse
import json
import resource
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("texts", type=Path)
parser.add_argument("work", type=Path)
parser.add_argument("--megabytes", type=float, default=1e9)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--repetition", action="store_true", help="the rules of repetition, too")
parser.add_argument("--no-letters", action="store_true", help="without the rule of words with a letter, where words are other things")
args = parser.parse_args()
BINARY = Path(__file__).parent / "../../target/release/homegrown"
work = args.work
BANDS, ROWS, WORDS = 16, 8, 5


def measured(name, run):
    """Seconds by the clock, and of all processes that ended meanwhile."""
    cpu = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    clock, before = time.time(), cpu()
    run()
    seconds = time.time() - clock, cpu() - before
    print(f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} |", flush=True)
    return seconds


def rules():
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    out = lambda name: JsonlWriter(str(work / name), output_filename="${rank}.jsonl", compression=None)
    steps = [GopherQualityFilter(max_non_alpha_words_ratio=None if args.no_letters else 0.8, exclusion_writer=out("dropped-quality"))]
    if args.repetition:
        steps.append(GopherRepetitionFilter(exclusion_writer=out("dropped-repetition")))
    LocalPipelineExecutor(
        [JsonlReader(str(work / "in")), *steps, out("rules")],
        tasks=args.workers, workers=args.workers, start_method="fork", logging_dir=str(work / "log-rules")).run()


def minhash():
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(n_grams=WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=64))
    place = lambda name: str(work / name)
    out = lambda name: JsonlWriter(place(name), output_filename="${rank}.jsonl", compression=None)
    both = dict(tasks=args.workers, workers=args.workers)
    for name, steps, tasks in [
        ("signatures", [JsonlReader(place("rules")), MinhashDedupSignature(place("signatures"), config)], both),
        ("buckets", [MinhashDedupBuckets(place("signatures"), place("buckets"), config=config)], dict(tasks=BANDS, workers=args.workers)),
        ("clusters", [MinhashDedupCluster(place("buckets"), place("remove"), config=config)], dict(tasks=1)),
        ("filter", [JsonlReader(place("rules")), MinhashDedupFilter(place("remove"), exclusion_writer=out("dropped-near")), out("kept")], both),
    ]:
        LocalPipelineExecutor(steps, logging_dir=place(f"log-{name}"), start_method="fork", **tasks).run()


def ours():
    groups = '["gopher", "repetition"]' if args.repetition else '["gopher"]'
    sets = [f"rules={groups}", "personal=keep", "boilerplate_documents=0", "heldout=0.0"]
    if args.no_letters:
        sets.append('bounds."gopher.letters"=0.0')
    subprocess.run([BINARY, "data", "prepare", work / "in", "--out", work / "ours", "--json",
                    *[f"--set={s}" for s in sets]], check=True, stdout=(work / "ours.json").open("w"))


def apart(run):
    """In a process of its own, so that its time is counted whole."""
    from multiprocessing import get_context
    process = get_context("fork").Process(target=run)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("it failed")


def jsonl(folder):
    return (json.loads(line) for path in sorted((work / folder).glob("*.jsonl")) for line in path.open())


def main():
    shutil.rmtree(work, ignore_errors=True)
    (work / "in").mkdir(parents=True)
    # Half of the documents in each file: a file is what a worker of datatrove's takes.
    ids, size = {}, 0
    outs = [(work / f"in/{i}.jsonl").open("w") for i in range(args.workers)]
    lines = [0] * args.workers
    for number, line in enumerate(args.texts.open()):
        if size >= args.megabytes * 1e6:
            break
        file = number % args.workers
        size += len(line.encode())
        lines[file] += 1
        document = json.loads(line)
        outs[file].write(json.dumps({"text": document["text"], "id": str(number)}, ensure_ascii=False) + "\n")
        ids[f"{file}.jsonl#{lines[file]}"] = number
    [out.close() for out in outs]
    print(f"{len(ids)} documents, {size / 1e6:.1f} MB\n\n| | clock, s | all processes, s |\n|---|--:|--:|", flush=True)

    rule = measured("datatrove: reading, rules", lambda: apart(rules))
    near = measured("datatrove: MinHash", lambda: apart(minhash))
    own = measured("homegrown: all of it", ours)
    print(f"\n{(rule[0] + near[0]) / own[0]:.0f} times as fast by the clock, {(rule[1] + near[1]) / own[1]:.0f} by processor time")

    theirs = {int(d["id"]): "kept" for d in jsonl("kept")}
    for folder in ["dropped-quality", "dropped-repetition", "dropped-near"]:
        for d in jsonl(folder):
            theirs[int(d["id"])] = d["metadata"].get("filter_reason", "near duplicate")
    number = lambda source: ids[source.rsplit("/", 1)[1]]
    here = {number(json.loads(line)["source"]): ("kept", "") for line in (work / "ours/documents.jsonl").open()}
    for line in (work / "ours/dropped.jsonl").open():
        d = json.loads(line)
        here[number(d["source"])] = (d["rule"], d["detail"])
    pairs = Counter((here.get(i, ("unread",))[0], theirs.get(i, "unread")) for i in ids.values())
    kept = lambda verdict: verdict == "kept"
    print(f"\nkept by both {pairs[('kept', 'kept')]}, by homegrown {sum(n for (o, _), n in pairs.items() if kept(o))}, "
          f"by datatrove {sum(n for (_, t), n in pairs.items() if kept(t))}\n\n| homegrown | datatrove | documents |\n|---|---|--:|")
    for (o, t), n in pairs.most_common():
        if kept(o) != kept(t):
            print(f"| {o} | {t} | {n} |")
    with (work / "differences.jsonl").open("w") as out:
        for i in sorted(ids.values()):
            if kept(here[i][0]) != kept(theirs[i]):
                out.write(json.dumps({"id": i, "homegrown": here[i], "datatrove": theirs[i]}) + "\n")
    print(f"\nall of them: {work / 'differences.jsonl'}")


# Workers of datatrove's read this file again.
if __name__ == "__main__":
    main()
