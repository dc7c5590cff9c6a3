"""The link check of the site detects every kind of broken link."""

from __future__ import annotations

import subprocess
import sys

import check_links
from documents import ROOT


def site(folder, **pages: str):
    for name, text in {"index": "<a href='sub/b.html#there'>b</a>", **pages}.items():
        path = folder / f"{name.replace('__', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_whole_site_has_no_broken_link(tmp_path):
    made = site(
        tmp_path,
        sub__b="<h2 id='there'>x</h2><a href='../index.html'>i</a><a href='.'>s</a><a href='#there'>t</a>"
        "<a href='https://example.org/gone'>e</a><img src='p%20q.png?v=1'><a href='mailto:a@b'>m</a>",
        sub__index="<a href='#'>top</a>",
        **{"404": "<link href='/sub/b.html' rel='stylesheet'>"},
    )
    (tmp_path / "sub" / "p q.png").write_bytes(b"")
    broken, counts = check_links.broken_links(made)
    assert broken == [] and counts == {"pages": 4, "links": 7, "elsewhere": 2}


def test_broken_links_are_listed_with_the_reason(tmp_path):
    made = site(
        tmp_path,
        sub__b="<a href='#gone'>a</a><img src='no.png'><script src='../no.js'></script>"
        "<a href='../../out.html'>o</a>",
    )
    (tmp_path.parent / "out.html").write_text("")
    broken, _ = check_links.broken_links(made)
    reasons = [line.partition(" -> ")[2] for line in broken]
    assert reasons == [
        "sub/b.html#there: no such anchor",
        "#gone: no such anchor",
        "no.png: no such file",
        "../no.js: no such file",
        "../../out.html: outside of the site",
    ]
    assert broken[0].startswith("index.html -> ")


def test_the_command_fails_at_a_broken_link(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "check_links.py"), str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == 1
    site(tmp_path, sub__b="")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.endswith("1 broken\n")
    site(tmp_path, sub__b="<p id=there>")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "2 pages, 1 links, 0 elsewhere; 0 broken" in done.stdout
