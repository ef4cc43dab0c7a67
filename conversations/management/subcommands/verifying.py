"""`verify`: hold both stores against their digests and each other."""

from __future__ import annotations

from conversations import verification
from conversations.management.subcommands.base import (
    DONE,
    FAILED,
    MISMATCHES,
    Output,
    Row,
    Subcommand,
    with_ids,
)


def _verify(output: Output, *, ids: list[str]) -> None:
    output.report(_verified(one) for one in verification.verify(ids or None))


def _verified(found: verification.Verified) -> Row:
    text = f"{found.conversation_id}: {', '.join(found.kinds)}"
    code = MISMATCHES if found.mismatched else DONE
    return Row(
        count=found.kinds[0] if len(found.kinds) == 1 else ", ".join(found.kinds),
        text=f"{text} ({'; '.join(found.places)})" if found.places else text,
        data={
            "conversation_id": found.conversation_id,
            "kinds": [kind.name.lower() for kind in found.kinds],
            "places": list(found.places),
        },
        notable=found.mismatched or found.failed or verification.Kind.QUARANTINED in found.kinds,
        exit_code=FAILED if found.failed else code,
    )


SUBCOMMANDS = (
    Subcommand(
        "verify", "Hold both stores against their digests and each other.", _verify, with_ids
    ),
)
