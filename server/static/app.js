// The dashboard's own script: signing in, and charts that follow the fleet. Everything else is HTML from the server.
"use strict";
(() => {
  const POLL_MS = 2000;
  const POINTS = 600;

  // A sign-in link carries its token behind the #, which browsers never send: it is posted, and the link forgotten.
  function signIn(form) {
    const hash = location.hash.slice(1);
    if (!hash) return;
    const fields = new URLSearchParams(hash);
    history.replaceState(null, "", location.pathname + location.search);
    if (fields.get("next")) form.elements.next.value = fields.get("next");
    if (!fields.get("token")) return;
    form.elements.token.value = fields.get("token");
    form.submit();
  }

  // UTC and 24 hours, like every other time on the page.
  const TIMES = (plot, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(11, 19));

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Vertical lines where drift alarms arrived.
  function alarmLines(alarms) {
    return {
      hooks: {
        draw: (plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.strokeStyle = color("--bad");
          ctx.lineWidth = 2;
          ctx.setLineDash([6, 4]);
          for (const at of alarms()) {
            const x = plot.valToPos(at, "x", true);
            if (x < bbox.left || x > bbox.left + bbox.width) continue;
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
          }
          ctx.restore();
        },
      },
    };
  }

  const KINDS = {
    confidence: {
      range: { y: { range: [0, 1.02] } },
      series: [
        { label: "mean confidence", key: "confidence_mean", stroke: "--accent", width: 2 },
        { label: "5th percentile", key: "confidence_p5", stroke: "--quiet", width: 1 },
      ],
    },
    latency: {
      range: { y: { range: (plot, low, high) => [0, (high || 1) * 1.15] } },
      series: [
        { label: "p50", key: "latency_p50_us", stroke: "--accent", width: 2 },
        { label: "p95", key: "latency_p95_us", stroke: "--quiet", width: 1 },
      ],
    },
  };

  function makeChart(element, kind, alarms) {
    const axis = () => ({ stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } });
    const size = () => ({ width: element.clientWidth || 300, height: element.clientHeight || 220 });
    const plot = new uPlot(
      {
        ...size(),
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        plugins: [alarmLines(alarms)],
        scales: kind.range,
        axes: [{ ...axis(), values: TIMES, space: 70 }, { ...axis(), size: 60 }],
        series: [{}, ...kind.series.map((series) => ({ label: series.label, stroke: color(series.stroke), width: series.width, points: { size: 4 } }))],
      },
      [[], ...kind.series.map(() => [])],
      element,
    );
    new ResizeObserver(() => plot.setSize(size())).observe(element);
    return plot;
  }

  async function getJson(url) {
    const answer = await fetch(url, { headers: { Accept: "application/json" }, credentials: "same-origin" });
    if (answer.status === 401) location.assign("/login?next=" + encodeURIComponent(location.pathname));
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
    return answer.json();
  }

  function follow(root) {
    const device = encodeURIComponent(root.dataset.device);
    let alarms = [];
    const charts = [];
    const update = async () => {
      const [metrics, events] = await Promise.all([
        getJson(`/api/v1/metrics/query?device=${device}&limit=${POINTS}`),
        getJson(`/api/v1/drift/events?device=${device}&limit=100`),
      ]);
      alarms = events.items.map((event) => event.at ?? event.received_at);
      const times = metrics.points.map((point) => point.at);
      for (const element of root.querySelectorAll("[data-chart]")) {
        const kind = KINDS[element.dataset.chart];
        let chart = charts.find((item) => item.element === element);
        if (!times.length) continue;
        if (!chart) {
          element.querySelector(".empty")?.remove();
          chart = { element, plot: makeChart(element, kind, () => alarms) };
          charts.push(chart);
        }
        chart.plot.setData([times, ...kind.series.map((series) => metrics.points.map((point) => point[series.key]))]);
        element.dataset.points = String(times.length);
      }
    };
    const loop = async () => {
      try {
        await update();
        root.removeAttribute("data-stale");
      } catch (error) {
        root.setAttribute("data-stale", String(error));  // shown by the page; the next round tries again
      }
      setTimeout(loop, POLL_MS);
    };
    loop();
  }

  document.addEventListener("DOMContentLoaded", () => {
    const form = document.querySelector("form.sign-in");
    if (form) signIn(form);
    document.querySelectorAll("[data-device]").forEach(follow);
  });
})();
