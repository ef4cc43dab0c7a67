"""Which peers there are, which of them are installed, and what installs the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from benchmarks.contenders import Contender
from benchmarks.peers import asynchronous, synchronous

NAMES = ("JSON row", "LangGraph", "LangGraph, dicts", "OpenAI Agents", "LangChain", "Google ADK")
_ENGINE = ("sqlalchemy.ext.asyncio", "asyncpg")


@dataclass(frozen=True, slots=True)
class Package:
    """A package from PyPI: what it is called there, what is imported of it, and who opens it.

    `requirements` are what pip is given; the first one's version is told.
    """

    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    opened: Callable[[], AbstractContextManager[list[Contender]]]

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
    Package(
        ("langgraph-checkpoint-postgres",),
        ("langgraph.checkpoint.postgres", "langgraph.checkpoint.base.id"),
        synchronous.savers,
    ),
    Package(
        ("openai-agents[sqlalchemy]",),
        ("agents.extensions.memory.sqlalchemy_session", *_ENGINE),
        asynchronous.sessions,
    ),
    Package(("langchain-postgres",), ("langchain_postgres",), synchronous.histories),
    Package(
        ("google-adk[db]", "asyncpg"),
        (*_ENGINE, "google.adk.sessions", "google.adk.events", "google.genai.types"),
        asynchronous.services,
    ),
)


@contextmanager
def peers(notes: list[str]) -> Iterator[list[Contender]]:
    """Give the JSON row and the peers that are installed; notes name the version of each."""
    with ExitStack() as stack:
        found = stack.enter_context(synchronous.json_rows())
        for package in PACKAGES:
            if package.installed:
                found += stack.enter_context(package.opened())
                notes.append(f"{package.name} {version(package.name)}")
            else:
                notes.append(missing(package))
        yield found


def missing(package: Package) -> str:
    """Return what is said of a package that is not installed."""
    wanted = " ".join(f"'{one}'" if "[" in one else one for one in package.requirements)
    return f"{package.name} is not installed, so not measured: pip install {wanted}"
