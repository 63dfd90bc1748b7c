"""Configs that the package ships, by name: `pretrain/quickstart`, or `quickstart` where the folder is known."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


class ConfigFile(click.Path):
    """A parameter that is a YAML file, or the name of a shipped one.

    Args:
        folders: Where a name without a folder is looked up, in this order.
    """

    def __init__(self, *folders: str) -> None:
        super().__init__(path_type=Path)
        self.folders = folders

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the file; one that is there comes first."""
        path = Path(value)
        if path.is_file():
            return path
        for folder in ("", *self.folders):
            if (shipped := CONFIGS / folder / f"{path}.yaml").is_file():
                return shipped
        return self.fail(f"no file {path}, and no shipped config of that name: {', '.join(self.names())}", param, ctx)

    def names(self) -> list[str]:
        """Return the names of the shipped configs that the command may be meant for."""
        paths = [path for folder in self.folders for path in sorted((CONFIGS / folder).glob("*.yaml"))]
        return [path.stem if len(self.folders) == 1 else f"{path.parent.name}/{path.stem}" for path in paths]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete names, and leave files to the shell."""
        names = [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]
        return names or super().shell_complete(ctx, param, incomplete)
