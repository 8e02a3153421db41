#!/usr/bin/env bash
# huggingface_hub 2.4.0: the header of a safetensors file costs the whole file where a server knows no ranges.
#
# Guessed: `parse_safetensors_file_metadata` asks for the first 100 kB and stops reading after them.
# Seen: it sends `Range: bytes=0-100000`, but a server or proxy that answers 200 with the whole body has all of it read
# into memory: 64 MiB here, 5 GB for a usual shard. Stop reading yourself, or look at the status first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check huggingface_hub==2.4.0
cat >"$folder/ask.py" <<'PY'
import http.server, json, os, struct, threading

HEADER = json.dumps({"w": {"dtype": "BF16", "shape": [2**25], "data_offsets": [0, 2**26]}}).encode()
BODY = struct.pack("<Q", len(HEADER)) + HEADER + bytes(2**26)
sent, ranges = 0, []


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global sent
        if "resolve" not in self.path:
            self.send_response(404)
            self.end_headers()
            return
        ranges.append(self.headers.get("range"))
        self.send_response(200)
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        for start in range(0, len(BODY), 2**16):
            try:
                self.wfile.write(BODY[start : start + 2**16])
            except OSError:
                return
            sent += len(BODY[start : start + 2**16])

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
from huggingface_hub import HfApi

found = HfApi(token=False).parse_safetensors_file_metadata("owner/name", "model.safetensors")
print(f"asked for {ranges[0]}, tensors {list(found.tensors)}, all {len(BODY) == sent} of {len(BODY)} bytes sent")
PY
seen=$(HF_HOME="$folder/home" "$folder/venv/bin/python" "$folder/ask.py")
echo "$seen"
[ "$seen" = "asked for bytes=0-100000, tensors ['w'], all True of 67108948 bytes sent" ] && echo "as seen on 2026-12-01"
