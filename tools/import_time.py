"""Fail if the median time of `import fastemd` in five processes exceeds a limit in seconds.

python tools/import_time.py 1.0
"""

import statistics
import subprocess
import sys
import time

seconds = []
for _ in range(5):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import fastemd"], check=True)
    seconds.append(time.perf_counter() - start)
median, limit = statistics.median(seconds), float(sys.argv[1])
print(f"import fastemd: {median:.2f} s, start of Python included (limit {limit} s)")
sys.exit(median > limit)
