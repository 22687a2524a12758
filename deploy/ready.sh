#!/bin/bash
# ready PORT: exits with 0 if the service with this metrics port is ready. For the health checks of containers, which run
# several times a minute: Python would take ten times as long to start.
exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && IFS= read -r -t 4 status <&3 &&
  [[ $status == *' 200 '* ]]
