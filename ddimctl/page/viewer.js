// What the page does by itself: the viewer of what lies between images, and downloads. The server keeps what was made under
// a key, and is asked for "kept/KEY/NAME": the picture at a place ("12.0.png"), those that are made ahead ("ahead"), files.
(() => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const say = (element, text, role = 'status') => {
    const told = element.querySelector('.told');
    told.setAttribute('role', role);
    told.textContent = text;
  };

  // The same element may be given another key: then it begins anew.
  const begun = new WeakMap();
  const begin = (root) => {
    begun.get(root)?.abort();
    const stopped = new AbortController(), { signal } = stopped;
    begun.set(root, stopped);
    root.dataset.live = root.dataset.kept;
    for (const name of ['cancelled', 'ready', 'exact']) delete root.dataset[name];
    const at = `kept/${root.dataset.kept}/`, step = +root.dataset.step;
    const ranges = [...root.querySelectorAll('input[type=range]')];
    const now = root.querySelector('.now'), pad = root.querySelector('.pad');
    const most = ranges.map((range) => +range.max);
    const have = new Map();  // place → picture
    const total = most.reduce((n, m) => n * (m / step + 1), 1);
    let asking = false, failed = false;
    ranges.forEach((range) => { range.value = 0; });
    delete now.dataset.place;
    for (const image of [now, ...(pad ? pad.querySelectorAll('img') : [])]) image.removeAttribute('src');

    const place = () => [ranges[0], ranges[1]].map((range) => (range ? +range.value : 0));
    const name = ([i, j]) => `${i}.${j}`;
    const percent = (i) => `${Math.round(100 * place()[i] / most[i])} %`;

    const nearest = ([i, j]) => {
      let best = null, least = Infinity;
      for (const key of have.keys()) {
        const [a, b] = key.split('.').map(Number), far = (a - i) ** 2 + (b - j) ** 2;
        if (far < least) [best, least] = [key, far];
      }
      return best;
    };

    const show = () => {
      const wanted = name(place()), key = have.has(wanted) ? wanted : nearest(place());
      if (key !== null && now.dataset.place !== key) {
        now.src = have.get(key);
        now.dataset.place = key;
      }
      root.dataset.exact = String(key === wanted);
      ranges.forEach((range, i) => range.setAttribute('aria-valuetext', percent(i)));
      if (!pad) return;
      const dot = pad.querySelector('.dot').style;
      dot.left = `${100 * place()[0] / most[0]}%`;
      dot.top = `${100 * place()[1] / most[1]}%`;
      for (const corner of pad.querySelectorAll('img:not([src])')) {
        if (have.has(corner.dataset.place)) corner.src = have.get(corner.dataset.place);
      }
    };

    // One request at a time, for where the hand is by then.
    const ask = async () => {
      if (asking || failed || signal.aborted) return;
      asking = true;
      try {
        for (let wanted; !have.has((wanted = name(place())));) {
          const answer = await fetch(`${at}${wanted}.png`);
          if (signal.aborted) return;
          if (!answer.ok) {
            failed = true;
            say(root, await answer.text(), 'alert');
            return;
          }
          have.set(wanted, URL.createObjectURL(await answer.blob()));
          show();
        }
      } catch (error) {
        failed = true;
        say(root, 'error: the page is no longer served', 'alert');
      } finally {
        asking = false;
      }
    };

    const ahead = async () => {
      while (root.isConnected && !failed && !signal.aborted && !root.dataset.cancelled) {
        await wait(0);
        if (asking || !root.checkVisibility()) {
          await wait(50);
          continue;
        }
        const answer = await fetch(`${at}ahead`).catch(() => null);
        if (answer !== null && answer.status === 409) {
          await wait(50);
          continue;
        }
        if (answer === null || !answer.ok) return;
        const made = Object.entries(await answer.json());
        if (signal.aborted) return;
        for (const [key, data] of made) have.set(key, `data:image/png;base64,${data}`);
        const ready = [...have.keys()].filter((key) => key.split('.').every((n) => n % step === 0)).length;
        root.dataset.ready = String(ready);
        say(root, ready < total ? `${ready} of ${total} pictures are ready` : `${total} pictures are ready`);
        show();
        if (made.length === 0) return;
      }
    };

    ranges.forEach((range) => range.addEventListener('input', () => { show(); ask(); }, { signal }));
    if (pad) {
      const drag = (event) => {
        const box = pad.getBoundingClientRect();
        const part = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
        ranges.forEach((range, i) => { range.value = Math.round(most[i] * Math.min(1, Math.max(0, part[i]))); });
        show();
        ask();
      };
      pad.addEventListener('pointerdown', (event) => { pad.setPointerCapture(event.pointerId); drag(event); }, { signal });
      pad.addEventListener('pointermove', (event) => { if (event.buttons) drag(event); }, { signal });
    }
    root.addEventListener('place', (event) => { event.detail.place = name(place()); }, { signal });
    show();
    ask().then(ahead);
  };

  const load = async (button) => {
    const root = button.closest('[data-kept]'), asked = { place: '' };
    root.dispatchEvent(new CustomEvent('place', { detail: asked }));
    const name = button.dataset.load.replace('PLACE', asked.place);
    say(root, 'making it');
    const answer = await fetch(`kept/${root.dataset.kept}/${name}`).catch(() => null);
    if (answer === null || !answer.ok) {
      say(root, answer === null ? 'error: the page is no longer served' : await answer.text(), 'alert');
      return;
    }
    const link = document.createElement('a');
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `ddimctl-${name}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(root, `ddimctl-${name} is downloaded`);
  };

  // Clicks that follow one another at once are one: gradio notices that work is under way only a moment later. What is shown
  // in between ends that.
  let clicked = new WeakMap();
  document.addEventListener('click', (event) => {
    const button = event.target.closest('.start');
    if (button === null) return;
    if (event.timeStamp - (clicked.get(button) ?? -Infinity) < 300) event.stopImmediatePropagation();
    clicked.set(button, event.timeStamp);
  }, true);

  document.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button?.dataset.load) load(button);
    if (button?.matches('.cancel')) {
      document.querySelectorAll('.between').forEach((root) => { if (root.checkVisibility()) root.dataset.cancelled = 'true'; });
    }
  });
  // gradio changes what is there already where it can: a picture's source, a text, the viewer's key.
  new MutationObserver((changes) => {
    if (changes.some(({ target }) => (target.closest ? target : target.parentElement)?.closest('.shown'))) {
      clicked = new WeakMap();
    }
    document.querySelectorAll('.between').forEach((root) => {
      if (root.dataset.live !== root.dataset.kept) begin(root);
    });
  }).observe(document, {
    childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ['src', 'data-kept', 'data-live'],
  });
})();
