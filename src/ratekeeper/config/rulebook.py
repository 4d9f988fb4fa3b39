"""The rules with the numbers that a configuration states, and where the configuration does not fit the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial

from ratekeeper.config.resolution import Configuration
from ratekeeper.config.schema import ProviderSettings, Settings
from ratekeeper.errors import RuleError, UnknownProvider
from ratekeeper.pools.address import EgressSettings
from ratekeeper.rules.book import Rulebook, normal_host
from ratekeeper.rules.call import PRIORITIES
from ratekeeper.rules.numbers import Adjustments, Cap
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed
from ratekeeper.rules.times import duration

__all__ = ["mistakes", "rulebook", "unchecked"]


def rulebook(configuration: Configuration, *, derived: bool = False) -> Rulebook:
    """The rules with everything that the configuration adjusts. `derived`: as for `mistakes`.

    Raises:
        RuleError: the configuration does not fit the rules; the first mistake.
    """
    book = unchecked(configuration)
    if configuration.file.path is not None:
        for error in mistakes(configuration, book, derived=derived):
            raise error
    return book


def unchecked(configuration: Configuration) -> Rulebook:
    """The rules as `rulebook` has them, without looking for `mistakes`."""
    try:
        return Rulebook.load(configuration.hosts, extra=configuration.rules, adjustments=_adjustments(configuration))
    except UnknownProvider as error:
        for host, name in configuration.settings.hosts.items():
            if configuration.hosts.get(normal_host(host, "")) == name and error.reason.startswith(
                f"no rules for {name!r}"
            ):
                raise configuration.file.error(f"$.hosts.{host}", f"{error.reason}.") from None
        raise


def mistakes(configuration: Configuration, book: Rulebook, *, derived: bool = False) -> Iterator[RuleError]:
    """Everything in the file that does not fit the rules in `book`, one error after the other.

    Args:
        derived: judge also what the file states of providers that only ccxt's tables know, which takes ccxt.
    """
    from ratekeeper.rules.ccxt_tables import PREFIX  # a large module, for those who configure something

    file, wrong = configuration.file, set[str]()
    for key, name, check in _statements(configuration.settings):
        if name.startswith(PREFIX) and not derived:
            continue
        try:
            with file.locating():
                provider = book.provider(name)
            if reason := check(provider):
                yield file.error(key, reason)
        except UnknownProvider:
            yield file.error(key, f"no provider is called {name!r}. There are: {', '.join(book.names())}.")
        except RuleError as error:
            if str(error) not in wrong:
                yield error
            wrong.add(str(error))
    for name, own in configuration.settings.providers.items():
        for limit, wish in own.limits.items():
            key = f"$.providers.{name}.limits.{limit}"
            if wish.period is not None and wish.capacity is None:
                yield file.error(f"{key}.period", "a period without a number. Add the capacity.")
            if wish.headroom and limit in configuration.settings.headroom.get(name, {}):
                line = file.place(f"{key}.headroom").rpartition(":")[2]
                yield file.error(f"$.headroom.{name}.{limit}", f"line {line} says it too. Remove one.")


def _statements(settings: Settings) -> Iterator[tuple[str, str, Callable[[Provider], str]]]:
    """Whatever names a provider: the key, the provider's name, and what tells what is wrong with the rest, or ``""``."""
    pools = settings.egress.pools if isinstance(settings.egress, EgressSettings) else {}
    yield from ((f"$.providers.{name}", name, _fits) for name in settings.providers)
    yield from ((f"$.headroom.{name}", name, _fits) for name in settings.headroom)
    for pattern in settings.priorities:
        name = "".join(pattern.partition("/")[0].split()[:1])
        yield f"$.priorities.{pattern}", name, partial(_unknown_pattern, pattern)
    yield from ((f"$.egress.pools.{name}", name, _fits) for name in pools if name != "*")
    yield from ((f"$.gathers.{name}", name, _fits) for name in settings.gathers if name != "*")
    for program, own in settings.programs.items():
        for limit in own.limits:
            provider, _, rest = limit.partition("/")
            yield f"$.programs.{program}.limits.{limit}", provider, partial(_unknown_limit, rest)


def _fits(_: Provider) -> str:
    return ""


def _unknown_limit(limit: str, provider: Provider) -> str:
    if limit in provider.limits:
        return ""
    has = ", ".join(provider.limits)
    return f"{provider.name} has no limit {limit!r}. Write {provider.name}/LIMIT; it has: {has}."


def _unknown_pattern(pattern: str, provider: Provider) -> str:
    """What is wrong with a key of `Settings.priorities`."""
    name, blank, wanted = pattern.partition(" ")
    if not blank:
        _, slash, kind = name.partition("/")
        if not slash or (kind.removeprefix("class:") in PRIORITIES and kind.startswith("class:")):
            return ""
        return f"no class of calls. There are: {', '.join(f'{provider.name}/class:{each}' for each in PRIORITIES)}."
    routes = [match for route in provider.file.routes for match in listed(route.match)]
    if any(fnmatchcase(route, wanted) for route in routes):
        return ""
    near = get_close_matches(wanted, routes, n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else "`ratekeeper explain METHOD URL` shows the route of a call."
    return f"{provider.name} has no such route. {remedy}"


def _caps(configuration: Configuration) -> dict[str, dict[str, Cap]]:
    """By provider and limit, how much this program may spend."""
    found: dict[str, dict[str, Cap]] = {}
    own = configuration.settings.programs.get(configuration.program)
    for name, units in own.limits.items() if own is not None else ():
        provider, _, limit = name.partition("/")
        place = configuration.file.place(f"$.programs.{configuration.program}.limits.{name}")
        found.setdefault(provider, {})[limit] = Cap(configuration.program, units, place)
    return found


def _adjustments(configuration: Configuration) -> dict[str, Adjustments]:
    """What the configuration changes of the rule files, by provider."""
    settings, caps = configuration.settings, _caps(configuration)
    found = {}
    for name in {*settings.providers, *settings.headroom, *caps}:
        own = settings.providers.get(name, ProviderSettings())
        headroom: dict[str, int | str] = {"*": own.headroom} if own.headroom else {}
        headroom.update({limit: wish.headroom for limit, wish in own.limits.items() if wish.headroom})
        found[name] = Adjustments(
            tiers={"*": own.tier} if isinstance(own.tier, str) else own.tier,
            overrides={
                limit: (wish.capacity, duration(wish.period) if wish.period else 0)
                for limit, wish in own.limits.items()
                if wish.capacity is not None
            },
            headroom={**headroom, **settings.headroom.get(name, {})},
            smooth=own.pace == "smooth",
            caps=caps.get(name, {}),
        )
    return found
