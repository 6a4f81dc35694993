"""Is a vault ready? What an orchestrator asks, in gRPC's usual way; exit 0 if it is.

python -m isthmus.clients.health unix:/run/isthmus/vault.sock
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def is_ready(address: str) -> bool:
    """Whether a vault at a Unix socket answers, its tables loaded."""
    with grpc.secure_channel(address, grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        try:
            said = ask(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(said.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_ready(sys.argv[1]) else 1)
