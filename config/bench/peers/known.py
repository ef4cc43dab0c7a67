"""Which peers there are, which of them are installed, and what installs the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from config.bench.peers import adk, jsonrow, langchain, langgraph, openai
from config.bench.peers.shared import Peer


@dataclass(frozen=True, slots=True)
class Package:
    """A package from PyPI: what it is called there, what is imported of it, and who opens it.

    `requirements` are what pip is given; the first one's version is told.
    """

    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    opened: Callable[[], AbstractContextManager[list[Peer]]]

    @property
    def name(self) -> str:
        """Return the name of the distribution."""
        return self.requirements[0].partition("[")[0]

    @property
    def installed(self) -> bool:
        """Whether everything it needs can be imported."""
        try:
            for module in self.modules:
                import_module(module)
        except ImportError:
            return False
        return True


PACKAGES: Sequence[Package] = (
    Package(("langgraph-checkpoint-postgres",), langgraph.MODULES, langgraph.opened),
    Package(("openai-agents[sqlalchemy]",), openai.MODULES, openai.opened),
    Package(("langchain-postgres",), langchain.MODULES, langchain.opened),
    Package(("google-adk[db]", "asyncpg"), adk.MODULES, adk.opened),
)


@contextmanager
def peers(notes: list[str]) -> Iterator[list[Peer]]:
    """Give the JSON row and the peers that are installed; notes get what is to be said of each."""
    with ExitStack() as stack:
        found = list(stack.enter_context(jsonrow.opened()))
        notes += [f"{peer.name}: {peer.limits}" for peer in found]
        for package in PACKAGES:
            if not package.installed:
                notes.append(missing(package))
                continue
            made = stack.enter_context(package.opened())
            told = f"({package.name} {version(package.name)})"
            notes += [f"{peer.name} {told}: {peer.limits}" for peer in made]
            found += made
        yield found


def missing(package: Package) -> str:
    """Return what is said of a package that is not installed."""
    wanted = " ".join(f"'{one}'" if "[" in one else one for one in package.requirements)
    return f"{package.name} is not installed, so not measured: pip install {wanted}"
