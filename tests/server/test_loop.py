"""x."""
import time
from pathlib import Path
from tests.conftest import TinyFederation
from isthmus.simulation import prepare, run
def test_x(tiny_federation: TinyFederation, tmp_path: Path):
    t=time.time()
    from isthmus.config import load_federation, load_domain
    f=load_federation(tiny_federation(weights={"books":2.0}))
    for d in f.domain_folders():
        c=load_domain(d)
        from isthmus.clients.data import load_domain_data
        print(load_domain_data(c).report.notes)
        t=time.time()
        from isthmus.privacy.plan import plan_for
        print(plan_for(c.privacy).noise_multiplier, time.time()-t)
    assert 0
