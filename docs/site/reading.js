// The theme's own script frames wide tables and puts buttons over code: here the frames can be reached by keyboard, and what
// has no name gets one.
(() => {
  const named = () => {
    document.querySelectorAll('.md-typeset__scrollwrap:not([tabindex])').forEach((frame) => {
      frame.tabIndex = 0;
      frame.setAttribute('role', 'group');
      frame.setAttribute('aria-label', 'Table');
    });
    document.querySelectorAll('.md-code__nav').forEach((nav, i) => {
      if (!nav.hasAttribute('aria-label')) nav.setAttribute('aria-label', `Code ${i + 1}`);
    });
  };
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
  named();
  new MutationObserver(named).observe(document.body, { childList: true, subtree: true });
})();
