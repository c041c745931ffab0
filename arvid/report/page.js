"use strict";

// Theme: the system's, until the button is pressed. Pages without storage forget the choice.
const theme = document.getElementById("theme");
const root = document.documentElement;
const remembered = (change) => {
  try {
    return change === undefined ? localStorage.getItem("theme") : localStorage.setItem("theme", change);
  } catch {
    return null;
  }
};
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-pressed", String(isDark()));
  theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
};
if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remembered(root.dataset.theme);
  showTheme();
});
systemDark.addEventListener("change", showTheme);
showTheme();

// Sorting: each heading orders the rows of each part of its table; reference rows stay on top.
for (const button of document.querySelectorAll(".numbers thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const cells = (row) => [...row.children].find((cell) => cell.dataset.key === heading.dataset.key);
    for (const body of table.tBodies) {
      const value = (row) => {
        const text = cells(row).dataset.value;
        return text === undefined ? Infinity : (descending ? -1 : 1) * Number(text);
      };
      const rows = [...body.rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
      body.append(...rows);
    }
  });
}

// Playback: one clock for all videos. Those near the window are loaded and follow it, the others are let go,
// because browsers hold only so many players at once.
const videos = [...document.querySelectorAll("video[data-src]")];
if (videos.length) {
  const HOLD = 0.6; // seconds that the last frames stand before the loop begins again
  const DRIFT = 0.15; // a video further than this from the clock is put right
  const toggle = document.getElementById("toggle");
  const seek = document.getElementById("seek");
  const loop = document.getElementById("loop");
  const clock = { time: 0, speed: 1, playing: false, length: 0 };
  const near = new Set();

  const place = (video, exact) => {
    const end = video.duration;
    if (!Number.isFinite(end) || video.seeking) return;
    const target = Math.min(clock.time, Math.max(end - 0.001, 0));
    const over = clock.time >= end;
    if (Math.abs(video.currentTime - target) > (exact ? 0.01 : DRIFT)) video.currentTime = target;
    if (clock.playing && !over) {
      video.playbackRate = clock.speed;
      if (video.paused) video.play().catch(() => {}); // refused or let go while starting: tried again next frame
    } else if (!video.paused) {
      video.pause();
    }
  };
  const placeAll = (exact) => near.forEach((video) => place(video, exact));

  const setPlaying = (playing) => {
    if (playing && clock.length && clock.time >= clock.length) clock.time = 0;
    clock.playing = playing;
    toggle.textContent = playing ? "Pause" : "Play";
    toggle.setAttribute("aria-pressed", String(playing));
    placeAll(!playing);
  };

  let last = performance.now();
  const tick = (now) => {
    const passed = Math.min((now - last) / 1000, 0.25);
    last = now;
    if (clock.playing && clock.length) {
      clock.time += passed * clock.speed;
      if (clock.time >= clock.length + HOLD * clock.speed && loop.checked) {
        clock.time = 0;
        placeAll(true);
      } else if (clock.time >= clock.length && !loop.checked) {
        clock.time = clock.length;
        setPlaying(false);
      }
      placeAll(false);
      seek.value = String(Math.min(clock.time / clock.length, 1));
    }
    requestAnimationFrame(tick);
  };

  for (const video of videos) {
    video.muted = true;
    video.addEventListener("loadedmetadata", () => {
      clock.length = Math.max(clock.length, video.duration);
      video.classList.toggle("pixelated", video.videoWidth <= 128);
      place(video, true);
    });
    video.addEventListener("seeked", () => {
      if (!clock.playing) place(video, true); // the clock may have been moved while this seek was under way
    });
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        near.add(target);
        target.src = target.dataset.src;
      } else if (near.delete(target)) {
        target.removeAttribute("src");
        target.load();
      }
    }
  }, { rootMargin: "600px 0px" });
  videos.forEach((video) => watcher.observe(video));

  toggle.addEventListener("click", () => setPlaying(!clock.playing));
  document.getElementById("restart").addEventListener("click", () => {
    clock.time = 0;
    placeAll(true);
    setPlaying(true);
  });
  document.getElementById("speed").addEventListener("change", (event) => {
    clock.speed = Number(event.target.value);
  });
  seek.addEventListener("input", () => {
    clock.time = Number(seek.value) * clock.length;
    setPlaying(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.code !== "Space" || large.open || event.target.closest("button, input, select, summary, a")) return;
    event.preventDefault();
    setPlaying(!clock.playing);
  });

  // Small clips: squares for pixels, or smooth.
  const pixels = document.getElementById("pixels");
  const showPixels = (sharp) => {
    document.body.classList.toggle("sharp", sharp);
    pixels.setAttribute("aria-pressed", String(sharp));
  };
  pixels.addEventListener("click", () => showPixels(!document.body.classList.contains("sharp")));
  showPixels(true);

  // Enlarging: a dialog with one clip. Arrow keys go through the rows of its prompt; Escape closes it.
  const large = document.getElementById("large");
  const player = large.querySelector("video");
  const link = document.getElementById("download");
  let shown = null;
  const enlarge = (button) => {
    shown = button;
    const source = button.querySelector("video").dataset.src;
    const { name, prompt } = button.dataset;
    document.getElementById("large-name").textContent = name;
    document.getElementById("large-prompt").textContent = prompt;
    player.src = source;
    player.play().catch(() => {}); // refused: the controls are there
    player.setAttribute("aria-label", `${name}: ${prompt}`);
    link.href = source;
    const words = `${name} ${prompt}`.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 80);
    link.download = `${words}.${source.slice(source.indexOf("/") + 1, source.indexOf(";"))}`;
    if (!large.open) large.showModal();
  };
  const step = (by) => {
    const all = [...shown.closest(".strip").querySelectorAll(".enlarge")];
    enlarge(all[(all.indexOf(shown) + by + all.length) % all.length]);
  };
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => enlarge(button));
  }
  player.addEventListener("loadedmetadata", () => {
    player.classList.toggle("pixelated", player.videoWidth <= 128);
  });
  document.getElementById("earlier").addEventListener("click", () => step(-1));
  document.getElementById("later").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => {
    if (event.target === large) large.close(); // beside its content
  });
  large.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target === player) return; // in the player they move in time
    event.preventDefault();
    step(by);
  });
  large.addEventListener("close", () => {
    player.removeAttribute("src");
    player.load();
    shown.focus();
  });
  setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  requestAnimationFrame(tick);
}
