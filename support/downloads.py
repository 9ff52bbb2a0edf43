"""Downloads that leave a complete file or none."""

import hashlib
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from support.errors import input_errors
from support.files import replacing


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections. With the one to a large file the hub states the file's SHA-256 as X-Linked-ETag."""

    sha256 = None

    def redirect_request(self, request, response, code, message, headers, url):
        etag = headers.get("X-Linked-ETag", "").strip('"')
        self.sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag) else self.sha256
        return super().redirect_request(request, response, code, message, headers, url)


def download(url: str, path: Path, sha256: str | None = None) -> bool:
    """Fetch a file, which appears complete or not at all. False: the server has no such file.

    Its length, and its SHA-256 where one is given or the server states it, are checked. (The downloader of torch.hub
    takes half a file for a file, and cannot see the sums that the hub states.)
    """
    redirects, digest = _Redirects(), hashlib.sha256()
    remedy = "try again with a network and a disk to write to, or give a directory that holds the files."
    problem = f"{url} could not be fetched into {path.parent}"
    with input_errors(problem, remedy, OSError, ValueError, HTTPException):
        try:
            response = urllib.request.build_opener(redirects).open(url, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        path.parent.mkdir(parents=True, exist_ok=True)  # now that there is something to put there
        with response, replacing(path) as output:
            length = int(response.headers["Content-Length"] or 0)
            with tqdm(desc=path.name, total=length, unit="B", unit_scale=True, leave=False) as bar:
                while block := response.read(1 << 20):
                    digest.update(block)
                    bar.update(output.write(block))
            if length and output.tell() != length:
                raise OSError(f"the connection ended after {output.tell()} of {length} bytes")
            if (sha256 or redirects.sha256 or digest.hexdigest()) != digest.hexdigest():
                raise OSError("what came has another SHA-256 than the file should have")
    return True
