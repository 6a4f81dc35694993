"""The page in a real browser: nothing is fetched, and a phone need not scroll sideways."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isthmus.report.page import render_page
from isthmus.report.result import Result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: layout is not checked"),
]

# A frame of the wanted width, since a headless window cannot be made as narrow as a phone. `cut` counts the texts of
# figures that stick out of their figure, `overlaps` those that cover one another.
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body><iframe src="report.html" width="{width}" height="900"
style="border:0"></iframe><pre id="out"></pre><script>
document.querySelector("iframe").onload = (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  let cut = 0, overlaps = 0, smallest = 1e9;
  for (const svg of page.querySelectorAll("svg")) {{
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    for (const text of svg.querySelectorAll("text"))
      smallest = Math.min(smallest, scale * parseFloat(getComputedStyle(text).fontSize));
    const boxes = [...svg.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    boxes.forEach((a, i) => {{
      if (a.left < frame.left - 1 || a.right > frame.right + 1) cut += 1;
      if (a.top < frame.top - 1 || a.bottom > frame.bottom + 1) cut += 1;
      for (const b of boxes.slice(i + 1))
        if (a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 3 && b.top < a.bottom - 3) overlaps += 1;
    }});
  }}
  document.getElementById("out").textContent = "measured" + JSON.stringify({{
    scroll: root.scrollWidth, client: root.clientWidth, cut, overlaps, smallest,
    figures: page.querySelectorAll("svg").length,
    fetched: event.target.contentWindow.performance.getEntriesByType("resource").length,
  }}) + "end";
}};
</script>"""


def measured(html: str, folder: Path, width: int) -> dict[str, Any]:
    """Lay a page out at `width` CSS pixels and read its sizes."""
    (folder / "report.html").write_text(html, encoding="utf-8")
    outer = folder / "measure.html"
    outer.write_text(MEASURE.format(width=width), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--disable-gpu",
            "--no-sandbox",
            "--disable-background-networking",
            "--allow-file-access-from-files",
            "--virtual-time-budget=5000",
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,900",
            "--dump-dom",
            outer.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(folder)},
    )
    found = re.search(r"measured(\{.*?\})end</pre>", done.stdout)
    assert found, done.stderr[-2000:]
    sizes: dict[str, Any] = json.loads(found.group(1))
    return sizes


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_its_screen_and_fetches_nothing(seeded: Result, tmp_path: Path, width: int) -> None:
    """No sideways scrolling on phone, tablet or desk; figures are legible, uncut and free of overlaps."""
    sizes = measured(render_page(seeded), tmp_path, width)
    assert sizes["client"] in {width, width - 15}  # without or with a scroll bar
    assert sizes["scroll"] <= sizes["client"]
    assert sizes["fetched"] == 0
    assert sizes["figures"] == 12
    assert sizes["cut"] == 0
    assert sizes["overlaps"] == 0
    assert sizes["smallest"] >= 10  # font size, CSS pixels


def test_extreme_contents_do_not_widen_a_phones_page(content: dict[str, Any], tmp_path: Path) -> None:
    """The longest name that a configuration allows, an endless word as a reason, and tiny gains."""
    long = "w" * 63
    content["federation"]["name"] = long
    content["domains"] = {long if key == "music" else key: part for key, part in content["domains"].items()}
    for record in content["federation"]["history"]:
        record["domains"][long] = record["domains"].pop("music") | {"status": "error", "reason": "x" * 400}
    for domain in content["domains"].values():
        domain["transfer_gain"] |= {"ndcg@10": 0.00001, "ci95": [-0.00002, 0.00004]}
    sizes = measured(render_page(Result.model_validate_json(json.dumps(content))), tmp_path, 390)
    assert sizes["scroll"] <= sizes["client"] <= 390
    assert sizes["cut"] == 0
    assert sizes["overlaps"] == 0


def test_the_measurement_notices_what_it_is_there_for(tmp_path: Path) -> None:
    """The checks above can fail: width, a fetch, and texts that overlap or leave their figure are all seen."""
    sizes = measured(
        """<!DOCTYPE html><body><div style="width:900px">wide</div><img src="http://127.0.0.1:9/absent.png" alt="">
        <svg viewBox="0 0 100 50" width="100"><text x="0" y="20">one</text><text x="5" y="20">two</text>
        <text x="90" y="40">outside</text></svg></body>""",
        tmp_path,
        390,
    )
    assert sizes["scroll"] > sizes["client"]
    assert sizes["fetched"] == 1
    assert sizes["overlaps"] == 1
    assert sizes["cut"] >= 1
