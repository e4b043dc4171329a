"""The report: what a run found, as one HTML page that needs no network and trusts nothing it shows.

`material` reads what the run left on disk; `disagreements`, `classes`, `operations` and `curated`
work out what there is to show, `charts` draws, `facts` shows what it does not know by name, and
`page` puts all of it into the templates. `text` bounds and spells out what came from traffic.
"""

from flywheel.report.curated import Step, funnel
from flywheel.report.material import Material, read
from flywheel.report.page import render

__all__ = ["Material", "Step", "funnel", "read", "render"]
