"""nginx before the server: the only one that clients reach. It limits what Triton does not.

Size of a body and of the JSON in it, time, number of connections, and which paths there are at all: Triton's own ports
also take commands (models, shared memory, traces, logs), unpack compressed bodies without a limit, and their failures
speak of the machine. nginx reads a request whole, has front.js check it, and passes it on with one length, however it
came in.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from functools import partial

from ..errors import BackendError
from .limits import Limits
from .process import Ports, dies_with_parent

INSTALL = "Debian and Ubuntu: apt-get install nginx-light libnginx-mod-http-js"
_MODEL = r"/v2/models/[A-Za-z0-9_.-]+(/versions/[0-9]+)?"


def find_nginx() -> tuple[str, str]:
    """Paths of nginx and of its module for JavaScript. `BackendError` that says how to get them."""
    # Debian has it where a plain user's PATH does not lead.
    found = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
    module = None if found is None else _module(found)
    if module is None:
        raise BackendError(
            f"serve: nginx with njs is not installed, which checks what reaches the server; {INSTALL}. Or give "
            "--direct, for this machine alone and for clients that are trusted"
        )
    return found, module


def _module(nginx: str) -> str | None:
    told = subprocess.run([nginx, "-V"], capture_output=True, text=True).stderr
    folders = [word.partition("=")[2] for word in told.split() if word.startswith("--modules-path=")]
    paths = [os.path.join(folder, "ngx_http_js_module.so") for folder in folders]
    return next(filter(os.path.isfile, paths), None)


class Front:
    """One nginx with its files in `folder`, which is its own."""

    def __init__(self, folder: str, host: str, public: Ports, limits: Limits):
        (self._nginx, self._module), self._folder = find_nginx(), folder
        self._host, self._public, self._limits = host, public, limits
        self.process: subprocess.Popen | None = None

    def point_to(self, private: Ports) -> None:
        """Starts it before the server at `private`, or turns it to that one. `BackendError` where it does not start."""
        with open(os.path.join(self._folder, "nginx.conf"), "w") as file:
            file.write(nginx_conf(self._folder, self._module, self._host, self._public, private, self._limits))
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)
            return
        command = [self._nginx, "-p", self._folder, "-c", os.path.join(self._folder, "nginx.conf"), "-e", "stderr"]
        # Killed, it would leave its workers behind.
        ending = partial(dies_with_parent, signal.SIGTERM)
        self.process = subprocess.Popen(command, preexec_fn=ending, start_new_session=True)
        pid = os.path.join(self._folder, "nginx.pid")
        deadline = time.monotonic() + 10
        while not os.path.exists(pid):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise BackendError(f"{self._nginx} did not start: it says why above; free the ports, or give others")
            time.sleep(0.02)

    def drain(self) -> None:
        """No new connections; those with a request keep until it is answered."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            # SIGTERM ends its workers as well, without waiting for requests.
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def nginx_conf(folder: str, module: str, host: str, public: Ports, private: Ports, limits: Limits) -> str:
    address = f"[{host}]" if ":" in host else host
    seconds = f"{int(limits.request_seconds * 1000)}ms"
    temporary = "\n  ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )

    def said(code: int, text: str) -> str:
        return f'default_type application/json; return {code} \'{{"error":"{text}"}}\';'

    def grpc_said(status: int, text: str) -> str:
        return (
            f"default_type application/grpc; add_header grpc-status {status} always; "
            f"add_header grpc-message '{text}' always; return 204;"
        )

    too_large = f"request: more than {limits.max_body} bytes, expected at most that; send fewer or smaller images"
    unavailable = "the server is not ready or did not answer in time; try again"
    internal = "internal error; the log says more of request $request_id"
    methods = "|".join(
        ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics")
    )
    return f"""load_module {module};
daemon off;
pid {folder}/nginx.pid;
worker_processes 1;
worker_shutdown_timeout {limits.drain_seconds}s;
events {{ worker_connections {2 * limits.connections + 32}; }}
http {{
  {temporary}
  js_path {os.path.dirname(os.path.abspath(__file__))};
  js_import front from front.js;
  log_format failure '$time_iso8601 $server_port $request_id status $status, upstream $upstream_status, "$request"';
  map $status $failed {{ ~^5 1; default 0; }}
  access_log /dev/stderr failure if=$failed;
  server_tokens off;
  types {{ }}
  default_type application/json;
  limit_conn_zone $server_name zone=all:1m;
  limit_conn_status 503;
  limit_conn all {limits.connections};
  client_max_body_size {limits.max_body};
  client_body_buffer_size 1m;
  client_header_timeout 10s;
  client_body_timeout 10s;
  send_timeout 10s;
  keepalive_requests 100000;
  large_client_header_buffers 4 8k;
  reset_timedout_connection on;
  map $http_content_encoding $packed {{ "" 0; identity 0; default 1; }}
  map $http_grpc_encoding $grpc_packed {{ "" 0; identity 0; default 1; }}

  upstream http {{ server 127.0.0.1:{private.http}; keepalive 64; }}
  upstream grpc {{ server 127.0.0.1:{private.grpc}; keepalive 64; }}
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host triton;
  proxy_set_header Accept-Encoding "";
  proxy_set_header X-Request-ID $request_id;
  proxy_set_header Inference-Header-Content-Length $http_inference_header_content_length;
  proxy_connect_timeout 5s;
  proxy_read_timeout {seconds};
  proxy_next_upstream off;
  proxy_buffers 16 64k;
  proxy_buffer_size 64k;
  proxy_max_temp_file_size 0;

  server {{
    server_name http;
    listen {address}:{public.http};
    error_page 400 501 =400 /said/400;
    error_page 413 /said/413;
    error_page 414 494 =431 /said/431;
    error_page 500 /said/500;
    error_page 502 503 504 =503 /said/503;
    location = /said/400 {{ internal; {said(400, "request: not HTTP as the server reads it")} }}
    location = /said/413 {{ internal; {said(413, too_large)} }}
    location = /said/431 {{ internal; {said(431, "request: its line or a header is too long")} }}
    location = /said/500 {{ internal; {said(500, internal)} }}
    location = /said/503 {{ internal; add_header Retry-After 1 always; {said(503, unavailable)} }}

    location / {{ {said(404, "no such path; the server takes /v2/health, /v2/models/NAME and its /infer")} }}
    location ~ ^/v2(/health/(live|ready))?/?$ {{ proxy_pass http://http; }}
    location ~ ^{_MODEL}(/ready|/stats|/config)?$ {{
      if ($request_method !~ ^(GET|HEAD)$) {{ return 405 '{{"error":"method: expected GET"}}'; }}
      proxy_pass http://http;
    }}
    location ~ ^{_MODEL}/infer$ {{
      if ($request_method != POST) {{ return 405 '{{"error":"method: expected POST"}}'; }}
      if ($packed) {{ {_if("return 415", "Content-Encoding: packed, expected a plain body")} }}
      set $limit_images {limits.max_images};
      set $limit_json {limits.max_json};
      # front.js reads it there; of a body in pieces, their lengths are in there too.
      client_body_buffer_size {limits.max_body + 65536};
      client_body_in_single_buffer on;
      js_content front.infer;
    }}
    location ^~ /checked/ {{
      internal;
      proxy_intercept_errors on;
      error_page 500 501 =500 /said/500;
      error_page 502 504 =503 /said/503;
      rewrite ^/checked(/.*)$ $1 break;
      proxy_pass http://http;
    }}
  }}

  server {{
    server_name metrics;
    listen {address}:{public.metrics};
    location = /metrics {{ proxy_pass http://127.0.0.1:{private.metrics}; }}
    location / {{ {said(404, "no such path; metrics are at /metrics")} }}
  }}

  server {{
    server_name grpc;
    listen {address}:{public.grpc} http2;
    grpc_connect_timeout 5s;
    grpc_read_timeout {seconds};
    grpc_next_upstream off;
    grpc_set_header X-Request-ID $request_id;
    error_page 413 = /said/8;
    error_page 400 502 503 504 = /said/14;
    location = /said/8 {{ internal; {grpc_said(8, too_large)} }}
    location = /said/14 {{ internal; {grpc_said(14, unavailable)} }}
    location / {{ {grpc_said(12, "no such method here")} }}
    location ~ ^/inference\\.GRPCInferenceService/({methods})$ {{ grpc_pass grpc://grpc; }}
    location = /grpc.health.v1.Health/Check {{ grpc_pass grpc://grpc; }}
    location = /inference.GRPCInferenceService/ModelInfer {{
      if ($grpc_packed) {{ return 415; }}
      error_page 413 = /said/8;
      error_page 415 = /said/12;
      error_page 400 502 503 504 = /said/14;
      grpc_pass grpc://grpc;
    }}
    location = /said/12 {{ internal; {grpc_said(12, "packed messages are not taken")} }}
  }}
}}
"""


def _if(action: str, text: str) -> str:
    return f'{action} \'{{"error":"{text}"}}\';'
