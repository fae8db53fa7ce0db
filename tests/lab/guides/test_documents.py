"""The console blocks of all documents that are no guides, run on the lab as the guides' are.

Which commands may stand outside of such blocks is said in tests/lint/test_documented_commands.py.
"""

from __future__ import annotations

import pytest

from lab.guide import course
from lab.guide.document import sections
from lab.guide.shell import Shell
from lab.guide.walk import Walk
from lab.paths import ROOT
from lab.render import Rendered
from tests.lint.tree import files

DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in files()
    if path.suffix == ".md"
    and path.parent.name not in course.names()
    and any(part.examples for part in sections(path))
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_a_document_print_what_it_says(lab: Rendered, shell: Shell, document: str) -> None:
    if document == "docs/istio.md" and lab.istio_version is None:
        pytest.skip("the lab has no Istio")
    for part in sections(ROOT / document, Walk(shell)):
        for example in part.examples:
            example.evaluate()
