"""The public port: a reverse proxy that lets through what a node needs, and nothing else.

    (state / "Caddyfile").write_text(caddyfile(config))
    command = [find_caddy(), "run", "--adapter", "caddyfile", "--config", state / "Caddyfile"]

Flower serves everything on one port: the Fleet API for nodes, and the Control and Runtime APIs, of which Control has
no authentication at all. So the SuperLink listens on loopback, and Caddy stands before it.

Guarantees:
    - Only `POST /v1/fleet/NAME` reaches the SuperLink; NAME is small letters and hyphens, and the path is sent on as it
      was matched, so no spelling of another path gets through. Everything else is answered 404 by the proxy itself.
    - A request with a larger body than the limit is refused; a connection that sends no head, or nothing, is closed.
    - TLS 1.2 or later, no plain text, and no port of Caddy's own for administration.
"""

import shutil
import sys
from pathlib import Path

from isthmus.errors import RunError
from isthmus.server.deploy.certs import AUTHORITY, SERVER, SERVER_KEY
from isthmus.server.deploy.settings import ServerConfig, bracketed

_CADDYFILE = """\
# Written by `isthmus server up`; change server.toml instead.
{{
	admin off
	persist_config off
	auto_https off
	skip_install_trust
	default_sni {address}
	fallback_sni {address}
	log {{
		output stderr
		format console
		level WARN
	}}
	servers {{
		protocols h1 h2
		max_header_size 16KB
		timeouts {{
			read_header {limits.header_seconds}s
			read_body {limits.body_seconds}s
			write {limits.body_seconds}s
			idle {limits.idle_seconds}s
		}}
	}}
}}

https://:{port} {{
	bind {bind}
	tls {certificate} {key} {{
		protocols tls1.2 tls1.3
	}}
	request_body {{
		max_size {limits.body_megabytes}MB
	}}
	@fleet {{
		method POST
		path_regexp fleet ^/v1/fleet/[a-z-]+$
	}}
	handle @fleet {{
		rewrite {{re.fleet.0}}
		reverse_proxy {{
			to https://{superlink}
			unhealthy_request_count {limits.connections}
			transport http {{
				dial_timeout 5s
				tls_trust_pool file {authority}
			}}
		}}
	}}
	handle {{
		respond 404
	}}
}}
"""


def caddyfile(config: ServerConfig) -> str:
    """The proxy's whole configuration, to be read by people too."""
    certificates = config.certificates_folder
    return _CADDYFILE.format(
        address=config.address,
        bind=bracketed(config.bind),
        port=config.port,
        superlink=config.superlink,
        limits=config.limits,
        certificate=_quoted(certificates / SERVER),
        key=_quoted(certificates / SERVER_KEY),
        authority=_quoted(certificates / AUTHORITY),
    )


def find_caddy() -> str:
    """The proxy's program: beside this interpreter, or on the path.

    Raises:
        RunError: If it is not installed.
    """
    beside = shutil.which("caddy", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("caddy")
    if found is None:
        raise RunError(
            "the reverse proxy Caddy is not installed, and without it Flower's unprotected interfaces would be public. "
            "`pip install 'isthmus[deploy]'` brings it; any `caddy` 2.7 or later on the PATH is taken too."
        )
    return found


def _quoted(path: Path) -> str:
    """A path as one word of a Caddyfile."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
