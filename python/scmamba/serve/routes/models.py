"""The models of the server, its tasks and their options."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ..services import Shared, User, known_model
from ..verbs import TASKS, schema

router = APIRouter()


@router.get("/v2/models")
def models(shared: Shared, who: User) -> dict[str, Any]:
    """Names of the models, and the options of each task."""
    from ...model import list_models

    return {
        "models": list(list_models()),
        "default": shared.settings.model,
        "tasks": {name: sorted(task.options) for name, task in TASKS.items()},
        "options": {name: schema(name) for name in TASKS},
    }


@router.get("/v2/models/{name}", responses={404: {}, 401: {}, 429: {}})
def model(name: str, who: User) -> dict[str, Any]:
    """One model with its card."""
    from ...model import list_models

    card = list_models()[known_model(name)] / "model_card.md"
    return {
        "name": name,
        "tasks": list(TASKS),
        "card": card.read_text() if card.is_file() else "",
    }
