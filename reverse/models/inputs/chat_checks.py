"""Check the shape of chats: roles, content parts, and a last turn that asks something."""

from collections.abc import Mapping
from typing import Any

from reverse.data.records.schema import is_set
from reverse.errors import RequestError, RequestTypeError
from reverse.models.inputs.picture_places import check_text

_PARTS = ("text", "image", "image_url")  # types of content
_ROLES = ("system", "user", "assistant")
# Keys that messages of other libraries have beside their content; a model would not see them.
_UNSEEN = ("image", "images", "video", "videos", "audio", "audios", "tools", "tool_calls", "function_call")


def refuse_videos(row: int, chat: Any) -> None:
    """Raise RequestError for a video. It is called first, because no other correction would help."""
    for message in chat if isinstance(chat, (list, tuple)) else []:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else []:
            if isinstance(part, Mapping) and part.get("type") in ("video", "video_url"):
                raise RequestError(
                    f"chat {row} holds content of type {part['type']!r}: videos are not supported yet, give "
                    "pictures of its frames (Qwen2.5-VL's own video processor, outside of this library's "
                    "generate(), needs `pip install torchvision` and load(..., image_backend='torchvision'))"
                )


def check_chat(row: int, chat: Any) -> list[dict]:
    """Return the messages of a chat as dicts.

    Raises RequestError or RequestTypeError, with the number `row` of the chat and the remedy, for a malformed
    message and for a chat whose last turn is not a question of the user.
    """
    if not isinstance(chat, (list, tuple)):
        raise RequestTypeError(
            f"prompt {row} must be a text or a chat (a list of messages), got {chat!r:.80}: try 'Describe "
            "this image.'"
        )
    for message in chat:
        _check_message(row, message)
    messages = [dict(message) for message in chat]
    last = messages[-1]["role"] if messages else "no message"
    if last != "user":
        raise RequestError(
            f"chat {row} ends with {last!r}: the last turn must be the user's, the answer follows it"
        )
    content = messages[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise RequestError(f"the last turn of chat {row} is empty, got {content!r:.80}: ask something")
    return messages


def _check_message(row: int, message: Any) -> None:
    if not isinstance(message, Mapping):
        raise RequestTypeError(
            f"chat {row} holds {message!r:.80}, which is not a message: give {{'role': 'user', 'content': …}}"
        )
    if "role" not in message or "content" not in message:
        raise RequestError(
            f"chat {row} has the message {message!r:.200}: every message needs 'role' and 'content'"
        )
    if message["role"] not in _ROLES:
        raise RequestError(
            f"chat {row} has a turn of {message['role']!r:.80}: roles are {', '.join(_ROLES)}, and a "
            "template would take any other for the assistant's"
        )
    unseen = [key for key in _UNSEEN if is_set(message.get(key))]
    if unseen:
        raise RequestError(
            f"chat {row} has a message with {', '.join(map(repr, unseen))} beside its content, which the "
            "model would not see: put pictures into the content as {'type': 'image', 'image': …}, and leave "
            "the others out"
        )
    content = message["content"]
    if not isinstance(content, (str, list, tuple)):
        raise RequestTypeError(
            f"the content of a message of chat {row} must be a text or a list of parts, got {content!r:.80}"
        )
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        _check_part(row, part)


def _check_part(row: int, part: Any) -> None:
    if not isinstance(part, Mapping):
        raise RequestTypeError(
            f"a message of chat {row} holds the part {part!r:.80}: give {{'type': 'text', 'text': …}} or "
            "{'type': 'image', 'image': …}"
        )
    kind = part.get("type")
    if kind not in _PARTS:
        raise RequestError(
            f"content of type {kind!r:.80} in chat {row} is not understood: give 'text' or 'image'"
        )
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise RequestError(
                f"a text part of chat {row} has the text {part.get('text')!r:.80}: give {{'type': 'text', "
                "'text': 'Describe this image.'}"
            )
        check_text(part["text"], f"chat {row}")
