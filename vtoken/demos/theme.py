"""The look of the page: colours and type as a Gradio theme; the rest is in assets/style.css."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
SANS = ("Inter", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "system-ui", "sans-serif")
MONO = ("JetBrains Mono", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

# name of Gradio's variable: light, dark
COLOURS = {
    "body_background_fill": ("#f6f4ef", "#121416"),
    "body_text_color": ("#1d1c1a", "#eceae5"),
    "body_text_color_subdued": ("#625f58", "#a3a099"),
    "background_fill_primary": ("#ffffff", "#1a1d20"),
    "background_fill_secondary": ("#f0ede6", "#212529"),
    "border_color_primary": ("#dfdbd1", "#32373c"),
    "border_color_accent": ("#0b6b60", "#3cc9b4"),
    "block_background_fill": ("#ffffff", "#1a1d20"),
    "block_border_color": ("#dfdbd1", "#32373c"),
    "block_label_background_fill": ("#ffffff", "#1a1d20"),
    "block_label_text_color": ("#625f58", "#a3a099"),
    "block_title_text_color": ("#1d1c1a", "#eceae5"),
    "block_info_text_color": ("#625f58", "#a3a099"),
    "input_background_fill": ("#ffffff", "#16181b"),
    "input_border_color": ("#c9c4b8", "#40464c"),
    "input_border_color_focus": ("#0b6b60", "#3cc9b4"),
    "input_placeholder_color": ("#77736a", "#8d8a84"),
    "checkbox_label_background_fill": ("#ffffff", "#1a1d20"),
    "checkbox_label_background_fill_selected": ("#ddeee9", "#17352f"),
    "checkbox_label_border_color_selected": ("#0b6b60", "#3cc9b4"),
    "checkbox_background_color_selected": ("#0b6b60", "#1f9e8c"),
    "checkbox_border_color_selected": ("#0b6b60", "#1f9e8c"),
    "slider_color": ("#0b6b60", "#3cc9b4"),
    "color_accent_soft": ("#ddeee9", "#17352f"),
    "link_text_color": ("#0b6b60", "#3cc9b4"),
    "button_primary_background_fill": ("#0b6b60", "#3cc9b4"),
    "button_primary_background_fill_hover": ("#085248", "#62d8c6"),
    "button_primary_text_color": ("#ffffff", "#06201c"),
    "button_primary_border_color": ("#0b6b60", "#3cc9b4"),
    "button_secondary_background_fill": ("#ffffff", "#212529"),
    "button_secondary_background_fill_hover": ("#f0ede6", "#2a2f34"),
    "button_secondary_border_color": ("#c9c4b8", "#40464c"),
    "button_secondary_text_color": ("#1d1c1a", "#eceae5"),
    "error_text_color": ("#9b1c2c", "#ff9aa6"),
    "code_background_fill": ("#f0ede6", "#212529"),
}
SIZES = {
    "block_border_width": "1px",
    "block_radius": "10px",
    "block_shadow": "none",
    "block_label_shadow": "none",
    "block_title_text_weight": "600",
    "block_label_text_weight": "600",
    "button_large_radius": "8px",
    "button_small_radius": "8px",
    "button_medium_radius": "8px",
    "input_radius": "8px",
    "input_shadow": "none",
    "input_border_width": "1px",
    "layout_gap": "14px",
    "form_gap_width": "0px",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "checkbox_label_shadow": "none",
}


def theme() -> Any:
    """The Gradio theme; no font or script is fetched from elsewhere."""
    from gradio.themes.base import Base
    from gradio.themes.utils import colors, sizes

    made = Base(
        primary_hue=colors.teal,
        neutral_hue=colors.stone,
        text_size=sizes.text_md,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_md,
        font=list(SANS),  # type: ignore[arg-type]
        font_mono=list(MONO),  # type: ignore[arg-type]
    )
    both: dict[str, str] = dict(SIZES)
    for name, (light, dark) in COLOURS.items():
        both[name], both[f"{name}_dark"] = light, dark
    made.name = "vtoken"
    return made.set(**both)


def asset(name: str) -> str:
    """Text of a file in assets/."""
    return (ASSETS / name).read_text(encoding="utf-8")
