() => {
  const tabs = TABS_JSON; // id of a section -> id of its tab
  const root = document.documentElement;
  const answer = () => document.getElementById('answer');
  root.lang = 'en';

  // Read out what the models say and where loading stands; gradio has no setting for it.
  for (const id of ['answer', 'status']) {
    document.getElementById(id)?.setAttribute('aria-live', 'polite');
  }

  // ---- tabs and the address ----
  const shownPlace = () => {
    const shown = [...document.querySelectorAll('[role=tabpanel]')].filter((p) => p.offsetHeight);
    // A section comes after the tab that it is in.
    return shown.at(-1)?.id.replace('tab-', '');
  };
  const firstIn = (tab) => Object.keys(tabs).find((section) => tabs[section] === tab) ?? tab;
  const addressed = () => {
    const place = new URL(window.location.href).searchParams.get('tab');
    return firstIn(place ?? 'try');
  };
  // The place that the address names already and the page is on its way to.
  let following = addressed() in tabs ? addressed() : null;
  const follow = (place) => { following = place === shownPlace() ? null : place; };
  // A step that the browser's back button undoes.
  const step = (place) => {
    const address = new URL(window.location.href);
    if (address.searchParams.get('tab') === place) { return; }
    address.searchParams.set('tab', place);
    window.history.pushState(null, '', address);
  };
  let driven = false; // By the page, not by a visitor.
  const open = async (place) => {
    for (const id of [tabs[place], place]) {
      // The sections of a tab are drawn when it is opened first.
      for (let tries = 0; id && tries < 60; tries += 1) {
        const button = document.querySelector(`[role=tab][data-tab-id="${id}"]`);
        if (button) {
          driven = true;
          button.click();
          driven = false;
          break;
        }
        await new Promise(requestAnimationFrame);
      }
    }
  };
  // Where a visitor went before the page had read its address, which must not take him elsewhere.
  let wentEarly = null;
  document.addEventListener('click', (event) => {
    const id = event.target.closest('[role=tab]')?.dataset.tabId;
    if (!id || driven) { return; }
    const within = document.querySelector(`#tab-${id} [role=tab][aria-selected=true]`);
    const place = within?.dataset.tabId ?? firstIn(id);
    if (place === shownPlace() && !following) { return; }
    // At the click, not once it is drawn: who is faster than the page still goes back step by step.
    step(place);
    follow(place);
    if (!window.finsentOpened) { wentEarly = place; }
  }, true);
  // Something was asked, and neither an answer nor a sign of the server has come since.
  let unheard = false;

  window.finsent = {
    placed: () => requestAnimationFrame(() => {
      const place = shownPlace();
      if (!place) { return; }
      root.dataset.tab = tabs[place] ?? place;
      root.dataset.place = place;
      if (following) {
        if (place === following) { following = null; }
        return;
      }
      // Opened by the server, as when a sentence is asked anew.
      if (window.finsentOpened) { step(place); }
    }),
    opened: (askLinked) => {
      window.finsentOpened = true;
      if (wentEarly) { open(wentEarly); }
      const early = window.finsentEarly;
      if (early?.isConnected) { early.click(); return; }
      const linked = (new URL(window.location.href).searchParams.get('text') ?? '').trim();
      const answered = answer()?.querySelector('[data-agree=true], [data-agree=false]');
      if (answer() && (linked || !answered)) { document.getElementById(askLinked)?.click(); }
    },
    asking: () => {
      unheard = true;
      window.finsentEarly = null;
      answer()?.setAttribute('data-busy', '');
    },
    // A base model that was chosen is there now: the answer that came from another is renewed.
    statusChanged: (askLinked) => {
      const waits = answer()?.querySelector('[data-waits-for]')?.dataset.waitsFor;
      const coming = document.querySelector('#status .fs-status')?.dataset.coming;
      if (waits && !coming) { document.getElementById(askLinked)?.click(); }
    },
  };
  window.addEventListener('popstate', () => {
    follow(addressed());
    open(addressed());
  });

  document.addEventListener('keydown', (event) => {
    const tab = event.target.closest?.('[role=tab]');
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!tab || (!step && event.key !== 'Home' && event.key !== 'End')) { return; }
    const all = [...tab.closest('[role=tablist]').querySelectorAll('[role=tab]')];
    const places = {Home: 0, End: all.length - 1};
    const next = all.at(places[event.key] ?? (all.indexOf(tab) + step) % all.length);
    event.preventDefault();
    next.focus();
    next.click();
  });

  // A finger on a chart scrolls the page; a mouse zooms the chart.
  document.addEventListener('touchstart', (event) => {
    if (event.target.closest('.js-plotly-plot .draglayer')) { event.stopPropagation(); }
  }, {capture: true, passive: true});

  document.addEventListener('click', (event) => {
    // Charts that were drawn while their tab was hidden learn their width when it is shown.
    if (event.target.closest('[role=tab]')) {
      requestAnimationFrame(() => window.dispatchEvent(new Event('resize')));
    }
    const guess = event.target.closest('[data-guess]');
    if (guess) {
      const result = guess.closest('.fs-result');
      result.querySelector('.fs-guess').hidden = true;
      result.querySelector('.fs-reveal').hidden = false;
      const said = [...result.querySelectorAll('.fs-guessed')];
      said.find((line) => line.dataset.for === guess.dataset.guess).hidden = false;
    }
  });

  // Who no longer wants to guess sees the answer.
  document.addEventListener('change', (event) => {
    if (!event.target.closest('#guess') || event.target.checked) { return; }
    for (const [part, hidden] of [['.fs-guess', true], ['.fs-reveal', false]]) {
      answer()?.querySelectorAll(part).forEach((element) => { element.hidden = hidden; });
    }
  });

  // ---- nothing is lost ----
  // What was pasted survives a reload; what runs is not left by accident.
  const lines = () => document.querySelector('#batch-lines textarea');
  document.addEventListener('input', (event) => {
    if (event.target === lines()) { sessionStorage.setItem('finsent-lines', event.target.value); }
  });
  const restore = () => {
    const box = lines();
    if (!box || box.dataset.kept) { return; }
    box.dataset.kept = 'yes';
    const kept = sessionStorage.getItem('finsent-lines');
    if (kept && !box.value) {
      box.value = kept;
      box.dispatchEvent(new Event('input', {bubbles: true}));
    }
  };
  window.addEventListener('beforeunload', (event) => {
    // Cancel can be pressed from the moment a batch waits for its turn to its end.
    if (document.querySelector('#batch-stop:enabled')) { event.preventDefault(); }
  });
  // A question that the server cannot hear is said to be lost instead of being waited for.
  window.finsent.heard = async () => {
    const lost = document.getElementById('lost');
    try {
      await fetch('gradio_api/app_id', {signal: AbortSignal.timeout(8000)});
      unheard = false;
      lost?.remove();
    } catch {
      window.finsent.answered();
      if (lost) { return; }
      const said = document.createElement('div');
      said.id = 'lost';
      said.className = 'fs-notice';
      said.dataset.tone = 'warning';
      said.setAttribute('role', 'alert');
      said.textContent = 'The connection to the server is lost. What you typed is still here; '
        + 'ask again when it is back.';
      document.getElementById('status').append(said);
    }
  };
  setInterval(() => {
    const works = document.querySelector('#batch-status progress');
    if (unheard || answer()?.hasAttribute('data-busy') || works || document.getElementById('lost')) {
      window.finsent.heard();
    }
  }, 4000);

  // Details that a visitor has opened or closed stay so with the next answer. Told by his click: an
  // answer that is patched in closes them as well.
  const kept = {};
  document.addEventListener('click', (event) => {
    const details = event.target.closest('summary')?.parentElement;
    if (details?.dataset.keep) { kept[details.dataset.keep] = !details.open; }
  }, true);
  const renewed = () => {
    const place = answer();
    if (!place) { return; }
    place.removeAttribute('data-busy');
    for (const details of place.querySelectorAll('details[data-keep]')) {
      if (details.dataset.keep in kept) { details.open = kept[details.dataset.keep]; }
    }
  };
  window.finsent.answered = renewed;
  let seen = false;
  const followBatch = () => {
    const said = document.querySelector('#batch-status .fs-batch-says:not(.fs-batch-done)');
    if (said && !seen) { said.scrollIntoView({block: 'nearest'}); }
    seen = Boolean(said);
  };
  new MutationObserver((changes) => {
    restore();
    followBatch();
    // Not gradio's own sign of work, which is in there too and comes long before an answer.
    const inAnswer = ({target}) => (target.nodeType === 1 ? target : target.parentElement)
      ?.closest('#answer .html-container');
    if (changes.some(inAnswer)) {
      unheard = false;
      renewed();
    }
  }).observe(document.body, {childList: true, characterData: true, subtree: true});
}
