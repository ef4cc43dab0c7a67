"""PUBLIC: whom a call is for, as arguments `user_id` say it.

ANY_OWNER is everybody's; `UserRef` is what such an argument takes, `UserKey` a user or its key.
"""

from conversations.routing.owners import ANY_OWNER, UserKey, UserRef

__all__ = ["ANY_OWNER", "UserKey", "UserRef"]
