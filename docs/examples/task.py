"""Mean of each file of numbers in the workspace `readings`, as JSON files in the workspace `results`."""

import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "/run/brokervol/brokervol")  # the client is an archive that Python imports from
from brokervol.client import Client

client = Client("/run/brokervol/broker.sock")
place = {workspace["name"]: workspace["volume_path"] for workspace in client.workspaces()}
directory = tempfile.mkdtemp()

reports = []
for found in sorted(client.files("readings", recursive=True)):
    numbers = [float(line) for line in Path(place["readings"], found.file).read_text().split()]
    report = {"file": found.file, "count": len(numbers), "mean": statistics.mean(numbers)}
    path = Path(directory, Path(found.file).stem + ".json")
    path.write_text(json.dumps(report) + "\n")
    item = {"local_path": str(path), "file_path": f"python/{path.name}", "media_type": "application/json"}
    reports.append(item)

for result in client.upload("results", reports):
    if result["status"] != "done":
        sys.exit(f"{result['file_path']}: {result['error']['detail']}")
    print(result["file_path"], result["file"]["file_size"], "bytes")
