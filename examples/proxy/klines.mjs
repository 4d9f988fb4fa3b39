// Candles through `ratekeeper proxy`, with nothing but Node's own fetch (Node 18 or later).
//
//   node klines.mjs [SECONDS]    asks for so long, eight at a time; prints how often each status came
//   RATEKEEPER_PROXY=http://...    where the proxy is; default: http://127.0.0.1:9200

const base = `${process.env.RATEKEEPER_PROXY ?? "http://127.0.0.1:9200"}/binance-usdm`;
const end = Date.now() + 1000 * Number(process.argv[2] ?? 5);
const statuses = {};
let longest = 0;

async function worker(symbol) {
  while (Date.now() < end) {
    const answer = await fetch(`${base}/fapi/v1/klines?symbol=${symbol}&interval=1m&limit=500`);
    statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
    longest = Math.max(longest, Number(answer.headers.get("x-ratekeeper-waited") ?? 0));
    if (answer.status === 429 && answer.headers.has("x-ratekeeper-error")) {
      // Ratekeeper's own refusal: nothing was sent. The body says which limit, until when, and who spent it.
      const { error } = await answer.json();
      console.error(error.message, error.remedy);
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(answer.headers.get("retry-after") ?? 1)));
    } else {
      await answer.arrayBuffer();
    }
  }
}

await Promise.all(Array.from({ length: 8 }, (_, n) => worker(n % 2 ? "ETHUSDT" : "BTCUSDT")));
console.log(JSON.stringify({ statuses, longestWaitMs: longest }));
