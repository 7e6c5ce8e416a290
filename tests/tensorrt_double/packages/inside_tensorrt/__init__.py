"""Behind the modules ``tensorrt`` and ``tensorrt_lean`` of the double."""
