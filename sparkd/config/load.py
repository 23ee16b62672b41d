"""sparkd.yaml, its recipe and the recipe's profiles become model objects, or one error with file, line and key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sparkd.config.document import Document, read_document
from sparkd.config.explain import explain
from sparkd.model.cluster import Settings
from sparkd.model.errors import ConfigError
from sparkd.model.outside import clean
from sparkd.model.plan import ClusterPlan
from sparkd.model.recipe import Profile, Recipe
from sparkd.model.resolve import resolve

DEFAULT_PATH = Path("/etc/sparkd/sparkd.yaml")

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Configuration:
    """Everything that the files say, checked. Profiles by name, in the order of their names."""

    path: Path
    settings: Settings
    recipe: Recipe
    profiles: dict[str, Profile]
    files: tuple[Path, ...]  # all that was read, sparkd.yaml first
    fingerprint: str  # sha256 (hex) over names and contents of `files`: another one means, something was edited


def load(path: Path = DEFAULT_PATH) -> Configuration:
    """Read and check sparkd.yaml, `recipes/<recipe>.yaml` and every `profiles/<recipe>/*.yaml` beside it.

    Every profile is resolved against the recipe and the cluster, so that a change of profile cannot fail later for
    what the files say. ConfigError (exit 64) tells the first thing that is wrong, by line, and how many more there are.
    """
    document = read_document(path)
    settings = _checked(document, Settings)
    recipes = path.parent / "recipes"
    recipe_document = _read_named(recipes, settings.recipe, "recipe", document.where(("recipe",)))
    recipe = _checked(recipe_document, Recipe)
    folder = path.parent / "profiles" / recipe.name
    profile_documents = [read_document(folder / f"{name}.yaml") for name in _names(folder)]
    profiles = {each.path.stem: _checked(each, Profile) for each in profile_documents}
    for wanted, asker, key in (
        (settings.profile, document, "profile"),
        (recipe.default_profile, recipe_document, "default_profile"),
    ):
        if wanted is not None and wanted not in profiles:
            raise _unknown("profile", wanted, list(profiles), asker.where((key,)), folder)
    documents = [document, recipe_document, *profile_documents]
    configuration = Configuration(
        path=path,
        settings=settings,
        recipe=recipe,
        profiles=profiles,
        files=tuple(each.path for each in documents),
        fingerprint=_fingerprint(documents),
    )
    for profile in (None, *profiles):
        plan_for(configuration, profile)
    return configuration


def plan_for(configuration: Configuration, profile: str | None = None) -> ClusterPlan:
    """The plan under `profile`, else under the one that sparkd.yaml names, else under the recipe's default.

    ConfigError where there is no such profile.
    """
    name = profile or configuration.settings.profile or configuration.recipe.default_profile
    if name is not None and name not in configuration.profiles:
        folder = configuration.path.parent / "profiles" / configuration.recipe.name
        raise _unknown("profile", name, list(configuration.profiles), "", folder)
    chosen = configuration.profiles[name] if name is not None else None
    return resolve(configuration.settings, configuration.recipe, chosen)


def _checked(document: Document, model: type[_Model]) -> _Model:
    """The document as a `model`. Strictly: "8000" is no number and "yes" no truth value, here or in a year."""
    data = dict(document.data)
    if model is not Settings:
        data.setdefault("name", document.path.stem)
        if data["name"] != document.path.stem:
            told = f"the file is called {document.path.name}, so this must be {document.path.stem} (or left out)"
            raise ConfigError(told, where=document.where(("name",)))
        if isinstance(data.get("arguments"), dict):
            data["arguments"] = _as_written(document, data["arguments"])
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise explain(error, document, model) from None


def _as_written(document: Document, arguments: dict[str, Any]) -> dict[str, Any]:
    """Numbers on their own reach the command line as the author wrote them: 0.90 stays 0.90."""

    def text(value: Any, *place: str | int) -> Any:
        if isinstance(value, list):
            return [text(item, *place, index) for index, item in enumerate(value)]
        return document.numbers.get(("arguments", *place), value) if isinstance(value, (int, float)) else value

    return {name: text(value, name) for name, value in arguments.items()}


def _names(folder: Path) -> list[str]:
    try:
        return sorted(file.stem for file in folder.iterdir() if file.suffix == ".yaml" and file.name[0] != ".")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(folder)) from None


def _read_named(folder: Path, name: str, kind: str, where: str) -> Document:
    """`name` from `folder`. A name never leads out of the folder: it has to be one of those that are there."""
    known = _names(folder)
    if name not in known:
        raise _unknown(kind, name, known, where, folder)
    return read_document(folder / f"{name}.yaml")


def _unknown(kind: str, name: str, known: list[str], where: str, folder: Path) -> ConfigError:
    have = f"known: {', '.join(known)}" if known else f"there is none in {folder}"
    told = clean(name if len(name) <= 60 else name[:60] + "...")
    return ConfigError(f"unknown {kind} {told!r} ({have})", where=where, hint=f"{kind}s are files in {folder}")


def _fingerprint(documents: list[Document]) -> str:
    told = hashlib.sha256()
    for each in documents:
        told.update(f"{each.path.name}\0{len(each.content)}\0".encode())
        told.update(each.content)
    return told.hexdigest()
