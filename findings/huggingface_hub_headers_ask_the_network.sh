#!/usr/bin/env bash
# huggingface_hub 2.4.0: building the headers of a request is itself a request.
#
# Guessed: `build_hf_headers()` is local; it reads a token and names versions.
# Seen: in a process with a fresh cache it first asks {HF_ENDPOINT}/api/agent-harnesses (the list of coding agents that
# the user agent may name), without the token. An air-gapped program that only wanted headers waits for that answer.
# With HF_HUB_OFFLINE=1 nothing is asked. Source: huggingface_hub/utils/_detect_agent.py of that version.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check huggingface_hub==2.4.0
cat >"$folder/ask.py" <<'PY'
import http.server, os, subprocess, sys, threading

asked = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append((self.path, "authorization" in self.headers))
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
code = "from huggingface_hub.utils import build_hf_headers; build_hf_headers(token='hf_example')"
for offline in ("0", "1"):
    asked.clear()
    env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": offline}
    env["HF_HOME"] = f"{sys.argv[1]}/home{offline}"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    print(f"HF_HUB_OFFLINE={offline}: {asked}")
PY
seen=$("$folder/venv/bin/python" "$folder/ask.py" "$folder")
echo "$seen"
expected="HF_HUB_OFFLINE=0: [('/api/agent-harnesses', False)]
HF_HUB_OFFLINE=1: []"
[ "$seen" = "$expected" ] && echo "as seen on 2026-12-01"
