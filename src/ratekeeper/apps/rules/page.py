"""The page of the documentation that lists the bundled providers: made from the rule files, so that it cannot differ."""

from __future__ import annotations

from collections.abc import Iterable

from ratekeeper.rules.explanation import GRADES, describe, provenance
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.routing import listed
from ratekeeper.rules.schema import File, Refusal

__all__ = ["page"]

_HEAD = """# Providers

Made from the rule files by `ratekeeper rules page`; do not edit. What the columns mean is in
[the format of rule files](rules-format.md).

Every number has a source with the day on which it was read, and a grade: {grades}.
Limits marked *learned* are read from the provider while programs run; the number here is what holds until then.

Every other exchange of [ccxt](https://github.com/ccxt/ccxt) is governed by what ccxt's own tables say, which
`ratekeeper rules show NAME --from-ccxt` prints ([how that is done](../how-to/use-with-ccxt.md)).
"""


def page(providers: Iterable[Provider]) -> str:
    """All of them, in Markdown."""
    providers = list(providers)
    grades = ", ".join(f"**{grade}** {meaning}" for grade, meaning in GRADES.items())
    index = "\n".join(f"* [{each.file.title}](#{_anchor(each.file.title)}): `{each.name}`" for each in providers)
    return "\n".join([_HEAD.format(grades=grades), index, *map(_provider, providers)]) + "\n"


def _provider(provider: Provider) -> str:
    file = provider.file
    learned = {
        name
        for learn in file.learn
        if learn.rows is not None and learn.limit
        for name, rule in file.limits.items()
        if name == learn.limit_name or rule.unit in learn.units.values()
    }
    lines = ["", f"## {file.title}", "", f"`{provider.name}` · hosts {_codes(file.hosts)}"]
    if file.paths:
        lines[-1] += f" · paths {_codes(file.paths)}"
    routes = sum(len(listed(rule.match)) for rule in file.routes)
    lines[-1] += f" · {routes} routes, {len(file.routes)} costs"
    lines += ["", "| limit | capacity | source | read | grade |", "|---|---|---|---|---|"]
    for limit in provider.limits.values():
        rule = file.limits[limit.name]
        origin = provenance(file, rule)
        text = describe(limit) + (f", {limit.refill} back each period" if limit.refill else "")
        text += ", *learned*" if limit.name in learned or rule.headers.limit else ""
        note = f"<br>{_cell(origin.note)}" if origin.note else ""
        lines.append(
            f"| `{limit.name}` | {_cell(text)}{note} | {_cell(origin.source)} | {origin.date} | {origin.confidence} |"
        )
    if file.refusals:
        lines += ["", "Refusals: " + "; ".join(map(_refusal, file.refusals)) + "."]
    lines += ["", "Sources:", ""]
    used = _used(file)
    for tag, source in file.sources.items():
        if tag in used:
            title = f"[{source.title}]({source.url})" if source.url else source.title
            lines.append(f"* {tag}: {title}, read {source.read}, {source.confidence}")
    return "\n".join(lines)


def _used(file: File) -> set[str]:
    rules = [file.default, *file.limits.values(), *file.routes]
    return {tag for rule in rules for tag in listed(rule.source) or listed(file.source)}


def _refusal(refusal: Refusal) -> str:
    """``429 with code 1015: throttled, holds ip``."""
    parts = [" or ".join(map(str, refusal.status))] if refusal.status else []
    parts += [f"{path} {' or '.join(map(str, values))}" for path, values in refusal.body.items()]
    parts += [f"`{refusal.text}`"] if refusal.text else []
    parts += [f"close {' or '.join(map(str, refusal.close))}"] if refusal.close else []
    text = f"{' with '.join(parts)}: {refusal.outcome}"
    held = [*refusal.limits, *([refusal.block] if refusal.block else [])]
    text += f", holds {' and '.join(held)}" if held else ""
    text += f" for {refusal.hold}" if refusal.hold else ""
    return text if refusal.charged else f"{text}, not counted"


def _codes(texts: list[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts) or "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(title: str) -> str:
    """The fragment that forges make of a heading."""
    kept = "".join(each for each in title.lower() if each.isalnum() or each in "-_ ")
    return kept.strip().replace(" ", "-")
