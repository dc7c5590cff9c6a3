"""A server that redirects every request to another one; prints its port, then what the other one received.

python redirecting.py > FILE
"""

import http.server
import threading


class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("received", self.path, self.headers.get("Authorization"), flush=True)
        self.send_response(200)
        self.end_headers()

    do_POST = do_DELETE = do_GET

    def log_message(self, *arguments):
        pass


class Redirecting(Other):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{other.server_port}{self.path}")
        self.end_headers()

    do_POST = do_DELETE = do_GET


other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
first = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
threading.Thread(target=other.serve_forever, daemon=True).start()
print(first.server_port, flush=True)
first.serve_forever()
