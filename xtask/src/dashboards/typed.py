# Reads dashboards into the classes of Grafana's own SDK and writes them again: what it does not know is lost on the way.
#
# typed.py PACKAGES DASHBOARD...
# Prints one line for each thing that is wrong; no line means that all is well.
import json
import sys

sys.path.insert(0, sys.argv[1])
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard, prometheus

# So that queries are read as Prometheus's, not as anything.
plugins.register_default_plugins()
wrong = 0


def complain(*what):
    global wrong
    wrong += 1
    print(*what)


def compare(before, after, place):
    if isinstance(before, dict):
        for key, value in before.items():
            if isinstance(after, dict) and key in after:
                compare(value, after[key], f"{place}/{key}")
            else:
                complain(f"{place}/{key}: Grafana knows no such key")
    elif isinstance(before, list):
        if len(before) != len(after):
            complain(f"{place}: {len(before)} became {len(after)}")
        for index, (one, other) in enumerate(zip(before, after)):
            compare(one, other, f"{place}/{index}")
    elif before != after:
        complain(f"{place}: {before!r} became {after!r}")


for path in sys.argv[2:]:
    with open(path) as file:
        before = json.load(file)
    read = dashboard.Dashboard.from_json(before)
    for panel in read.panels:
        for query in panel.targets:
            if not isinstance(query, prometheus.Dataquery):
                complain(f"{path}: a query of {panel.title!r} is none of Prometheus's")
    compare(before, json.loads(JSONEncoder().encode(read)), path)
sys.exit(1 if wrong else 0)
