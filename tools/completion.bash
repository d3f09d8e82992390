# Completion after `python -m`: the modules of this project, then the flags of the one that is named, out of its --help.
#
#   source tools/completion.bash                                            bash
#   autoload -U bashcompinit && bashcompinit && source tools/completion.bash      zsh

_ibot_commands() { # modules that can be run
    printf '%s\n' pretrain.{train,config,curves,sample,tokenizers} checkpoints.{export,inspect} transfer.{train,predict,predict.export} \
        probes.{compare,embed,knn,linear,logistic,semi,cluster,parts,segment,finetune,retrieval,robustness,video,visualize,report,live,tables,reproduce,ablate}
}

_ibot_flags() { # _ibot_flags PYTHON MODULE
    "$1" -m "$2" --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9-]*' | sort -u
}

_ibot_complete() {
    local current="${COMP_WORDS[COMP_CWORD]}" module="${COMP_WORDS[2]:-}"
    COMPREPLY=()
    [ "${COMP_WORDS[1]:-}" = -m ] || return
    if [ "$COMP_CWORD" = 2 ]; then
        # shellcheck disable=SC2207
        COMPREPLY=($(compgen -W "$(_ibot_commands)" -- "$current"))
    elif [[ "$current" == -* ]] && _ibot_commands | grep -qxF -- "$module"; then
        # shellcheck disable=SC2207
        COMPREPLY=($(compgen -W "$(_ibot_flags "${COMP_WORDS[0]}" "$module")" -- "$current"))
    fi
}

complete -o default -F _ibot_complete python python3 .venv/bin/python
