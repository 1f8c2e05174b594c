"""A picture over the one that it began from, and a slider that uncovers either."""

from __future__ import annotations

from base64 import b64encode
from functools import cache

import streamlit as st

_HTML = """
<div class="pair">
  <img class="after" alt="The result"><img class="before" alt="What it began from">
  <input type="range" min="0" max="100" value="50" aria-label="Before and after">
</div>
"""

_CSS = """
.pair { position: relative; display: grid; }
img { grid-area: 1 / 1; width: 100%; border-radius: 0.625rem; }
.before { clip-path: inset(0 50% 0 0); }
input { grid-area: 2 / 1; width: 100%; margin: 0.75rem 0 0; }
input { accent-color: var(--st-primary-color); color-scheme: light dark; }
"""

_JS = """
export default function ({ parentElement, data }) {
  const [after, before] = ["after", "before"].map((name) => parentElement.querySelector(`.${name}`));
  const slider = parentElement.querySelector("input");
  after.src = data.after;
  before.src = data.before;
  slider.oninput = () => {
    before.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
  };
}
"""


@cache
def _component() -> st.components.v2.types.ComponentRenderer:
    """Registered when it is first shown, since that needs Streamlit to run."""
    return st.components.v2.component("before_and_after", html=_HTML, css=_CSS, js=_JS)


def show_comparison(before: bytes, after: bytes) -> None:
    """Two PNG files of one size, in the width of what is around them."""
    _component()(data={"before": _url(before), "after": _url(after)}, key="before_and_after")


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
