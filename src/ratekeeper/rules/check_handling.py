"""Whether what a rule file says of keeping, merging and looking up can be meant."""

from __future__ import annotations

from fnmatch import fnmatchcase

from ratekeeper.rules.check_values import Wrong, lower_case, reference, words
from ratekeeper.rules.routing import listed
from ratekeeper.rules.schema import File, Lookup, Merge
from ratekeeper.rules.times import duration

__all__ = ["check_handling"]


def check_handling(file: File) -> None:
    """``[keep]``, ``apart``, ``[[merges]]``, ``[[lookups]]``; raises `Wrong`."""
    routes = {match for route in file.routes for match in listed(route.match)}
    for pattern, span in file.keep.items():
        _kept(f"$.keep.{pattern}", pattern, span, routes)
    for index, name in enumerate(file.apart):
        lower_case(f"$.apart[{index}]", name)
    for index, merge in enumerate(file.merges):
        _merge(f"$.merges[{index}]", merge, file, routes)
    for index, lookup in enumerate(file.lookups):
        _lookup(f"$.lookups[{index}]", lookup, file, routes)


def _kept(key: str, pattern: str, span: str, routes: set[str]) -> None:
    if not any(fnmatchcase(route, pattern) for route in routes):
        raise Wrong(key, f"{pattern!r} fits no route", "Write a route's `match`, or shell wildcards over several")
    try:
        duration(span)
    except ValueError:
        raise Wrong(key, f"{span!r} is not a duration", "Write for example 30s, 1h, or 0s for never") from None


def _merge(key: str, merge: Merge, file: File, routes: set[str]) -> None:
    if not merge.match.startswith("GET "):
        raise Wrong(f"{key}.match", "only reads can be merged", "Write GET /path")
    _route(f"{key}.match", merge.match, routes)
    if merge.to:
        _route(f"{key}.to", f"GET {merge.to}", routes)
    _sources(f"{key}.source", merge.source, file)


def _lookup(key: str, lookup: Lookup, file: File, routes: set[str]) -> None:
    for match in listed(lookup.match):
        _route(f"{key}.match", match, routes)
    _route(f"{key}.route", lookup.route, routes)
    for name, where in lookup.params.items():
        if not (len(where) > 2 and where[0] == where[-1] == "'"):
            reference(f"{key}.params.{name}", where)
    for name in lookup.needed:
        if name not in lookup.params:
            raise Wrong(f"{key}.needed", f"{name!r} is not among `params`", f"Use {words(lookup.params)}")
    if lookup.once:
        reference(f"{key}.once", lookup.once)
    _sources(f"{key}.source", lookup.source, file)


def _route(key: str, match: str, routes: set[str]) -> None:
    if match not in routes:
        raise Wrong(key, f"{match!r} is no route of this file", "Write it as in a route's `match`")


def _sources(key: str, source: str | list[str], file: File) -> None:
    for tag in listed(source):
        if tag not in file.sources:
            raise Wrong(key, f"unknown source {tag!r}", f"Use one of [sources]: {words(file.sources)}")
