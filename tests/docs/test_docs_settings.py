"""Every setting is documented: its page is what the settings themselves say, and each has a description."""

from __future__ import annotations

import runpy
from pathlib import Path

from pydantic import BaseModel

from policyd.settings import Settings


def test_the_page_of_the_settings_is_current(repository: Path) -> None:
    page = runpy.run_path(str(repository / "scripts" / "settings-reference"))["page"]()
    written = (repository / "docs" / "reference" / "settings.md").read_text()
    assert written == page, "run scripts/settings-reference > docs/reference/settings.md"


def test_every_setting_says_what_it_means() -> None:
    def silent(model: type[BaseModel]) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found += silent(field.annotation)
            elif not field.description:
                found.append(name)
        return found

    assert silent(Settings) == []
