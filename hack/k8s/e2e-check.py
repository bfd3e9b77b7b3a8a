#!/usr/bin/env python3
"""Compares reports of the end-to-end suite with the list of specs that must pass.

e2e-check.py BASELINE LIMIT REPORT...: LIMIT is a regular expression that the listed names must match to count, or ''.
Exit status 1 where a spec of the list did not pass, or did not run at all.
e2e-check.py --names REPORT...: prints the names of what the reports (of a dry run) would have run.
"""
import json
import re
import sys


def specs(paths):
    for path in paths:
        with open(path) as file:
            for suite in json.load(file):
                for spec in suite["SpecReports"] or []:
                    if spec["LeafNodeType"] == "It":
                        yield " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]]), spec


def reason(spec):
    failure = spec.get("Failure") or {}
    lines = failure.get("Message", "").strip().splitlines()
    return lines[0][:300] if lines else ""


def main():
    if sys.argv[1] == "--names":
        names = {name for name, spec in specs(sys.argv[2:]) if spec["State"] == "passed"}
        print("\n".join(sorted(names)))
        return 0
    baseline, limit, reports = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(baseline) as file:
        wanted = [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]
    wanted = [name for name in wanted if re.search(limit, name)]
    if not wanted:
        sys.exit(f"no spec of {baseline} matches {limit!r}: nothing would be checked")

    counts, ran = {}, {}
    for name, spec in specs(reports):
        if spec["State"] == "skipped" and not reason(spec):
            continue  # not selected
        counts[spec["State"]] = counts.get(spec["State"], 0) + 1
        ran[name] = spec
    print("specs: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    for name, spec in sorted(ran.items()):
        if spec["State"] not in ("passed", "skipped") and name not in wanted:
            print(f"not on the list: {spec['State']}: {name}: {reason(spec)}")
    bad = [name for name in wanted if name not in ran or ran[name]["State"] != "passed"]
    for name in bad:
        state = f"{ran[name]['State']}: {reason(ran[name])}" if name in ran else "did not run"
        print(f"MUST PASS: {name}: {state}")
    conformance = [name for name in wanted if "[Conformance]" in name]
    print(
        f"{len(wanted) - len(bad)} of {len(wanted)} specs of the list passed, "
        f"{sum(name not in bad for name in conformance)} of {len(conformance)} conformance specs among them"
    )
    return 1 if bad else 0


sys.exit(main())
