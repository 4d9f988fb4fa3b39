#!/bin/sh
# Candles through `ratekeeper proxy`, with nothing but curl.
#
#   klines.sh [SECONDS]          asks for so long, four at a time; prints how often each status came
#   RATEKEEPER_PROXY=http://...    where the proxy is; default: http://127.0.0.1:9200
set -eu
base="${RATEKEEPER_PROXY:-http://127.0.0.1:9200}/binance-usdm"
end=$(($(date +%s) + ${1:-5}))
while [ "$(date +%s)" -lt "$end" ]; do
    curl --silent --parallel --parallel-max 4 --output /dev/null --write-out '%{http_code}\n' \
        --header 'X-Ratekeeper-Priority: low' \
        "$base/fapi/v1/klines?symbol={BTCUSDT,ETHUSDT}&interval={1m,5m,15m,1h}&limit=500"
done | sort | uniq -c
