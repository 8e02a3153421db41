"""What it costs to move bytes between two devices: the machine as a networkx graph."""

from __future__ import annotations

import networkx as nx

from profiles.hardware import Hardware


class Links:
    """Cheapest paths over the machine graph.

    `hop_s(a, b, n)` = min over paths of (sum of the links' latencies + n / slowest bandwidth on the path); 0 when a is
    b. It is symmetric and obeys the triangle inequality. Ignored: contention, the staging copy where a path crosses
    host memory, pinning.
    """

    def __init__(self, hardware: Hardware) -> None:
        self._options: dict[tuple[str, str], list[tuple[float, float]]] = {}
        graph: nx.Graph[str] = nx.Graph()
        graph.add_nodes_from(device.name for device in hardware.devices)
        # Of several links between two devices each is an option of its own: keep the best latency a bandwidth.
        for floor in sorted({link.bandwidth_bytes_per_s for link in hardware.links}, reverse=True):
            for link in hardware.links:
                a, b = link.between
                if link.bandwidth_bytes_per_s == floor:
                    known = graph.get_edge_data(a, b, {}).get("latency_s", float("inf"))
                    graph.add_edge(a, b, latency_s=min(known, link.latency_s))
            for a, reached in nx.all_pairs_dijkstra_path_length(graph, weight="latency_s"):
                for b, latency in reached.items():
                    self._options.setdefault((a, b), []).append((latency, floor))

    def hop_s(self, a: str, b: str, n_bytes: float) -> float:
        """Seconds to move `n_bytes` from device `a` to device `b`."""
        if a == b:
            return 0.0
        return min(latency + n_bytes / bandwidth for latency, bandwidth in self._options[a, b])
