"""Redaction: recognise a redacted text when it is written again, and give its redacted form."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from django.conf import settings
from django.utils.encoding import force_bytes

from conversations.content.digests import loosened
from conversations.content.document import Document

Redactions = Mapping[bytes, str]
REDACTED = "[redacted]"


def text_hash(message: Any, secret: str | bytes | None = None) -> bytes:
    """Return the keyed hash that recognises a redacted message: of its role and content.

    A message that is no mapping, or has no content, is hashed whole. `secret` is SECRET_KEY unless
    it is given.
    """
    if isinstance(message, dict) and message.get("content"):
        subject = [message.get("role"), message["content"]]
    else:
        subject = [None, message]
    secret = settings.SECRET_KEY if secret is None else secret
    key = sha256(b"conversations.redaction" + force_bytes(secret)).digest()
    # Loosely: a JSON column returns the same message with other key order and numbers.
    return hmac.digest(key, json.dumps(loosened(subject)).encode("ascii"), "sha256")


def redacted_form(message: Any, replacement: str) -> Any:
    """Return the parts of a message that stay: its role, and the ids that join tool calls."""
    if not isinstance(message, dict):
        return replacement
    kept = {name: message[name] for name in ("role", "tool_call_id") if name in message}
    form = {**kept, "content": replacement}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        form["tool_calls"] = [_redacted_call(call) for call in calls if isinstance(call, dict)]
    return form


def _redacted_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    kept: dict[str, Any] = {key: call[key] for key in ("id", "type") if key in call}
    return {**kept, "function": {"name": name, "arguments": "{}"}}


def applied(message: Any, redactions: Redactions) -> Any:
    """Return a message, in its redacted form if its text was redacted."""
    if not redactions:
        return message
    for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        replacement = redactions.get(text_hash(message, secret))
        if replacement is not None:
            return redacted_form(message, replacement)
    return message


def applied_to(document: Document, redactions: Redactions) -> Document | None:
    """Return a document with its redacted messages in redacted form, or None if it has none."""
    if not redactions:
        return None
    messages = [applied(message, redactions) for message in document.messages]
    if all(new is old for new, old in zip(messages, document.messages, strict=True)):
        return None
    return Document(document.fields, messages, document.items)
