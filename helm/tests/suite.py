"""What the checks share: the list of checks, and all renderings of the table of cases."""

import concurrent.futures
import hashlib
import json
import os

import cases
from chart import REPO, REQUIRED, merged, render

DOCS = REPO / "docs"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def values_of(name):
    files, values = cases.GOOD[name]
    return files, values if name.startswith("alone") else merged(REQUIRED, values)


def in_parallel(function, items):
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(function, items))


def all_rendered():
    """Name of each case = its rendering; each is rendered once."""
    if not all_rendered.kept:
        names = list(cases.GOOD)

        def one(name):
            files, values = values_of(name)
            return render(values, files)

        all_rendered.kept = dict(zip(names, in_parallel(one, names), strict=True))
    return all_rendered.kept


all_rendered.kept = {}


def problems_in(rendered, find):
    """What `find` reports of each case, with the case's name."""
    return [f"{name}: {problem}" for name, one in rendered.items() for problem in find(one)]


def expect(problems):
    assert not problems, "\n    ".join(["", *map(str, problems[:15]), f"({len(problems)} problems)"])


def distinct(rendered):
    """Each distinct object of all cases, once, with one case that has it."""
    found = {}
    for name, one in rendered.items():
        for item in one.objects:
            key = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).digest()
            found.setdefault(key, (name, item))
    return list(found.values())
