"""The raw-data side of a domain: readers, repairs, splits, and the import of foreign files.

    data = load_domain_data(load_domain("shopping"))

Files in reading order: `rawtext` (bytes), `tables` (layouts), `clock` (times), `catalogue` (items), `events`
(interactions), `users` (ids), `ordering` (from a log to histories), `splits`, `domain` (all of it), `kept` (its arrays
on disk), `importing` (a domain folder from foreign files).
"""

from isthmus.clients.data.catalogue import Catalogue
from isthmus.clients.data.domain import DataReport, DomainData, check_domain, fingerprint, load_domain_data
from isthmus.clients.data.importing import ImportColumns, copy_interactions, import_domain, propose_privacy
from isthmus.clients.data.kept import open_domain_data
from isthmus.clients.data.splits import Histories

__all__ = [
    "Catalogue",
    "DataReport",
    "DomainData",
    "Histories",
    "ImportColumns",
    "check_domain",
    "copy_interactions",
    "fingerprint",
    "import_domain",
    "load_domain_data",
    "open_domain_data",
    "propose_privacy",
]
